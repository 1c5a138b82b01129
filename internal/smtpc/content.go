package smtpc

import (
	"bytes"
	"errors"
	"fmt"
	"io"
)

const block = 64 << 10 // of a streamed content; two are held at a time

// ErrBare is in the chain of an ErrContent: bare CR or LF means different things to different servers, which is how one message becomes two.
var ErrBare = errors.New("bare CR or LF")

func contentError(err error) error { return fmt.Errorf("%w: %w", ErrContent, err) }

// clean reports that every CR is followed by LF and every LF comes after CR.
func clean(b []byte) bool {
	n := bytes.Count(b, []byte("\n"))
	return n == bytes.Count(b, []byte("\r")) && n == bytes.Count(b, []byte("\r\n"))
}

// cleaner is clean for a content that comes in pieces.
type cleaner struct{ cr bool } // the last piece ended in CR

func (c *cleaner) piece(b []byte) bool {
	if len(b) == 0 {
		return true
	}
	if c.cr {
		if b[0] != '\n' {
			return false
		}
		b = b[1:]
	}
	c.cr = len(b) > 0 && b[len(b)-1] == '\r'
	if c.cr {
		b = b[:len(b)-1]
	}
	return clean(b)
}

// copyContent writes what r gives with write, and the last block only after r said that all was well: who reads must
// not get a whole message out of a damaged one. An error of r, a wrong length or a bare CR or LF is ErrContent.
func copyContent(r io.Reader, size int64, write func(b []byte) error) error {
	var bufs [2][]byte
	var held []byte
	var check cleaner
	for i := 0; ; i ^= 1 {
		if bufs[i] == nil {
			bufs[i] = make([]byte, min(block, size+1))
		}
		n, err := fill(r, bufs[i])
		if err != nil && err != io.EOF {
			return contentError(err)
		}
		size -= int64(n)
		if !check.piece(bufs[i][:n]) {
			return contentError(ErrBare)
		}
		if size < 0 || err == io.EOF && (size != 0 || check.cr) {
			return contentError(errors.New("length differs from what was stored"))
		}
		if werr := write(held); werr != nil {
			return werr
		}
		held = bufs[i][:n]
		if err == io.EOF {
			return write(held)
		}
	}
}

// fill reads until b is full or r ends. Unlike io.ReadFull it does not take a reader's own io.ErrUnexpectedEOF for the end.
func fill(r io.Reader, b []byte) (n int, err error) {
	for n < len(b) && err == nil {
		var k int
		k, err = r.Read(b[n:])
		n += k
	}
	return n, err
}

// stuffer writes content as DATA wants it (RFC 5321, 4.5.2). The content is clean, so a line begins after LF only.
type stuffer struct {
	w     io.Writer
	begun bool
	last  byte
}

func (s *stuffer) write(b []byte) error {
	for len(b) > 0 {
		if b[0] == '.' && s.atStart() {
			if _, err := s.w.Write([]byte{'.'}); err != nil {
				return err
			}
		}
		n := len(b)
		if i := bytes.Index(b, []byte("\n.")); i >= 0 {
			n = i + 1
		}
		if _, err := s.w.Write(b[:n]); err != nil {
			return err
		}
		s.begun, s.last = true, b[n-1]
		b = b[n:]
	}
	return nil
}

// atStart reports that what comes next begins a line.
func (s *stuffer) atStart() bool { return !s.begun || s.last == '\n' }

// end writes the final dot, on a line of its own.
func (s *stuffer) end() error {
	dot := ".\r\n"
	if !s.atStart() {
		dot = "\r\n.\r\n"
	}
	_, err := io.WriteString(s.w, dot)
	return err
}
