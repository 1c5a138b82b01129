package spool

import (
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// errNoPrealloc says that a file system can't take room in advance.
var errNoPrealloc = errors.New("file system can't preallocate")

// preallocate takes real blocks for the first size octets of a file.
func preallocate(f *os.File, size int64) error {
	err := unix.Fallocate(int(f.Fd()), 0, 0, size)
	for errors.Is(err, unix.EINTR) { // tmpfs gives up at a signal, and the runtime sends some
		err = unix.Fallocate(int(f.Fd()), 0, 0, size)
	}
	if errors.Is(err, unix.EOPNOTSUPP) {
		return errNoPrealloc
	}
	return err
}

// datasync brings a file's content to stable storage, and of its metadata what is needed to read it again. What was
// written through a mapping is part of it.
func datasync(f *os.File) error { return unix.Fdatasync(int(f.Fd())) }

// writePieces writes pieces one behind the other, in few calls.
func writePieces(f *os.File, pieces [][]byte, at int64) error {
	const most = 1024 // IOV_MAX
	for len(pieces) > 0 {
		some := pieces[:min(len(pieces), most)]
		want := 0
		for _, p := range some {
			want += len(p)
		}
		n, err := unix.Pwritev(int(f.Fd()), some, at)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		if n < want {
			return io.ErrShortWrite
		}
		at += int64(n)
		pieces = pieces[len(some):]
	}
	return nil
}
