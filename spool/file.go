package spool

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"

	"github.com/cespare/xxhash/v2"

	"understudy/internal/mta"
)

// bodyFile is content on its way into a file of its own.
type bodyFile struct {
	f    *os.File
	num  uint32 // makes the name unique: a message that is put again never touches what was there
	size int64
	sum  *xxhash.Digest
	w    io.Writer    // into f, maybe sealing
	end  func() error // writes what w kept back
}

// bodyStep is how much is written between two looks at the free space.
const bodyStep = 1 << 20

func bodyName(id mta.ID, num uint32) string { return fmt.Sprintf("%s-%08x", id, num) }

func (s *Store) bodyPath(id mta.ID, num uint32) string {
	return filepath.Join(s.dir, bodiesDir, bodyName(id, num))
}

func (s *Store) createBody(id mta.ID) (*bodyFile, error) {
	b := &bodyFile{num: max(rand.Uint32(), 1), sum: xxhash.New()}
	f, err := os.OpenFile(s.bodyPath(id, b.num), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	b.f = f
	if s.keys.key == nil {
		w := bufio.NewWriterSize(f, 256<<10)
		b.w, b.end = w, w.Flush
		return b, nil
	}
	w, err := newSealer(f, s.keys)
	if err != nil {
		b.remove()
		return nil, err
	}
	b.w, b.end = w, w.Close
	return b, nil
}

// fill copies content into the file, as long as the reserve is not touched.
func (b *bodyFile) fill(r io.Reader, room *space) error {
	for {
		n, err := io.CopyN(io.MultiWriter(b.w, b.sum), r, bodyStep)
		b.size += n
		if err == io.EOF {
			return b.end()
		}
		if err != nil {
			return fmt.Errorf("read content: %w", err)
		}
		if err := room.room(0); err != nil {
			return err
		}
	}
}

// commit brings content and name to stable storage; the record may follow.
func (b *bodyFile) commit() error {
	if err := b.f.Sync(); err != nil {
		return err
	}
	if err := b.f.Close(); err != nil {
		return err
	}
	return syncDir(filepath.Dir(b.f.Name()))
}

// remove takes back what no record names.
func (b *bodyFile) remove() {
	b.f.Close()
	os.Remove(b.f.Name())
}

// openBody opens content in a file of its own, verified as it is read.
func (s *Store) openBody(m *message) (io.ReadCloser, error) {
	f, err := os.Open(s.bodyPath(m.env.ID, m.file))
	if errors.Is(err, os.ErrNotExist) {
		return nil, errMoved
	}
	if err != nil {
		return nil, err
	}
	if !m.seal {
		return newVerifier(f, f, m), nil
	}
	r, err := newOpener(f, s.keys)
	if err != nil {
		f.Close()
		return nil, err
	}
	return newVerifier(r, f, m), nil
}

// reseal makes a copy of content whose file is not encrypted with the present key, and returns the message with it and
// the one with the file that is left; nil if nothing had to be done.
func (s *Store) reseal(m *message) (now, left *message, err error) {
	id, err := s.bodyKeyID(m)
	if err != nil || id == s.keys.id {
		return m, nil, err
	}
	r, err := s.openBody(m)
	if err != nil {
		return nil, nil, err
	}
	defer r.Close()
	f, err := s.createBody(m.env.ID)
	if err != nil {
		return nil, nil, err
	}
	if err = f.fill(r, s.space); err == nil {
		err = f.commit()
	}
	if err != nil {
		f.remove()
		return nil, nil, err
	}
	copied := *m
	copied.file, copied.seal = f.num, s.keys.key != nil
	return &copied, m, nil
}

// bodyKeyID names the key of a message's file; empty if it is not encrypted.
func (s *Store) bodyKeyID(m *message) (string, error) {
	if !m.seal {
		return "", nil
	}
	f, err := os.Open(s.bodyPath(m.env.ID, m.file))
	if errors.Is(err, os.ErrNotExist) {
		err = fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if err != nil {
		return "", err
	}
	defer f.Close()
	head, err := readSealHead(f)
	return head.keyID, err
}

// removeBody frees the space of a message that is gone. If it fails, the next Open sweeps.
func (s *Store) removeBody(m *message) {
	if err := os.Remove(s.bodyPath(m.env.ID, m.file)); err != nil {
		s.log.Warn("content of an ended message not removed", slog.String("id", m.env.ID.String()), slog.Any("err", err))
	}
}

// diskUsed sums up the blocks of all files below dir.
func diskUsed(dir string) int64 {
	var sum int64
	filepath.WalkDir(dir, func(_ string, e os.DirEntry, err error) error {
		if err != nil {
			return nil // removed meanwhile
		}
		if fi, err := e.Info(); err == nil {
			sum += blocks(fi)
		}
		return nil
	})
	return sum
}
