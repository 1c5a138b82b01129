package inbound

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"understudy/internal/mta"
)

const (
	chunkSize  = 32 << 10
	headChunks = 8    // 256 KiB in memory: nearly all mail; what is larger continues in a file
	allChunks  = 2048 // 64 MiB for all messages that come in at once; beyond it they use their files sooner
)

var chunkPool = sync.Pool{New: func() any { return new([chunkSize]byte) }}

// body holds the content of one message until the spool has it: its first 256 KiB in memory, the rest in a file
// without a name, so that a message of any size costs a bounded buffer and a crash leaves no trace.
type body struct {
	dir    string
	chunks *atomic.Int64 // how many are in use by all bodies
	files  *atomic.Int64 // octets in the files of all bodies
	head   []*[chunkSize]byte
	file   *os.File // nil until the head is full
	size   int64
}

// Write implements io.Writer.
func (b *body) Write(p []byte) (int, error) {
	n := 0
	for n < len(p) {
		at := int(b.size % chunkSize)
		if b.file != nil || at == 0 && !b.grow() {
			m, err := b.spill(p[n:])
			return n + m, err
		}
		m := copy(b.head[len(b.head)-1][at:], p[n:])
		n += m
		b.size += int64(m)
	}
	return n, nil
}

// grow adds a chunk to the head, if it may have one more.
func (b *body) grow() bool {
	if len(b.head) == headChunks {
		return false
	}
	if b.chunks.Add(1) > allChunks {
		b.chunks.Add(-1)
		return false
	}
	b.head = append(b.head, chunkPool.Get().(*[chunkSize]byte))
	return true
}

// spill writes to the file, which it makes when it is first needed.
func (b *body) spill(p []byte) (int, error) {
	if b.file == nil {
		f, err := unnamedFile(b.dir)
		if err != nil {
			return 0, fmt.Errorf("temporary file: %w", err)
		}
		b.file = f
	}
	n, err := b.file.Write(p)
	b.size += int64(n)
	b.files.Add(int64(n))
	if err != nil {
		return n, fmt.Errorf("temporary file: %w", err)
	}
	return n, nil
}

// content is the body, for any number of readers at once, until Close.
func (b *body) content() mta.Content {
	return mta.Content{Size: b.size, Open: func() (io.ReadCloser, error) { return b.reader(""), nil }}
}

// edited is what goes on: our trace field and the body, edited.
func (b *body) edited(e mta.Edit, trace string) mta.Content {
	if len(e.Drop) > 0 {
		return e.Apply(trace, b.content())
	}
	top := e.Above + trace
	return mta.Content{Size: int64(len(top)) + b.size, Open: func() (io.ReadCloser, error) { return b.reader(top), nil }}
}

// reader reads before and then the body from its start.
func (b *body) reader(before string) *bodyReader {
	r := &bodyReader{}
	r.parts = r.few[:0]
	if before != "" {
		r.parts = append(r.parts, []byte(before))
	}
	left := b.size
	for _, c := range b.head {
		n := min(left, chunkSize)
		r.parts = append(r.parts, c[:n])
		left -= n
	}
	if b.file != nil {
		r.file = io.NewSectionReader(b.file, 0, left)
	}
	return r
}

// bodyReader gives out what a body holds without a buffer of its own.
type bodyReader struct {
	parts [][]byte
	few   [2][]byte         // what parts begin in: most mail has no more
	file  *io.SectionReader // after them; may be nil
}

// Close implements io.Closer. The body stays open for others.
func (r *bodyReader) Close() error { return nil }

// Read implements io.Reader.
func (r *bodyReader) Read(p []byte) (int, error) {
	for len(r.parts) > 0 {
		n := copy(p, r.parts[0])
		if r.parts[0] = r.parts[0][n:]; len(r.parts[0]) == 0 {
			r.parts = r.parts[1:]
		}
		if n > 0 || len(p) == 0 {
			return n, nil
		}
	}
	if r.file == nil {
		return 0, io.EOF
	}
	return r.file.Read(p)
}

// WriteTo implements io.WriterTo.
func (r *bodyReader) WriteTo(w io.Writer) (int64, error) {
	var total int64
	for len(r.parts) > 0 {
		n, err := w.Write(r.parts[0])
		total += int64(n)
		if err != nil {
			return total, err
		}
		r.parts = r.parts[1:]
	}
	if r.file == nil {
		return total, nil
	}
	n, err := io.Copy(w, r.file)
	return total + n, err
}

// Close gives everything back. The body must not be used after it.
func (b *body) Close() error {
	for _, c := range b.head {
		chunkPool.Put(c)
	}
	b.chunks.Add(-int64(len(b.head)))
	if b.file == nil {
		b.head = nil
		return nil
	}
	b.files.Add(-(b.size - int64(len(b.head))*chunkSize))
	b.head = nil
	return b.file.Close()
}

// unnamedPattern names the files of systems without O_TMPFILE for the moment between their making and unlinking.
const unnamedPattern = "understudy-content-*"

// unnamedFile makes a file that no folder lists.
func unnamedFile(dir string) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err == nil {
		return os.NewFile(uintptr(fd), filepath.Join(dir, "(unnamed)")), nil
	}
	if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.ENOTSUP) {
		return nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	f, err := os.CreateTemp(dir, unnamedPattern)
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// sweepUnnamed removes what a crash left between CreateTemp and Remove.
func sweepUnnamed(dir string) error {
	left, err := filepath.Glob(filepath.Join(dir, unnamedPattern))
	if err != nil {
		return err
	}
	for _, f := range left {
		if err := os.Remove(f); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}
