package spool

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// errNoPrealloc says that a file system can't take room in advance.
var errNoPrealloc = errors.New("file system can't preallocate")

// preallocate takes real blocks for the first size octets of a file.
func preallocate(f *os.File, size int64) error {
	err := unix.Fallocate(int(f.Fd()), 0, 0, size)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return errNoPrealloc
	}
	return err
}

// datasync brings a file's content to stable storage, and of its metadata what is needed to read it again. What was
// written through a mapping is part of it.
func datasync(f *os.File) error { return unix.Fdatasync(int(f.Fd())) }
