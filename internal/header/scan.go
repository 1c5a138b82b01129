package header

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"

	"understudy/internal/mta"
)

// Limits on a header. Mail is far below both; what is above is an attack or a mistake.
const (
	MaxOctets = 1 << 20
	MaxFields = 10_000
)

// Header says how far a header was read.
type Header struct {
	Fields int   // how many were given to visit
	Octets int64 // how much they take: where the empty line begins, or the content ended
	Ended  bool  // the empty line was there
	Over   bool  // the header is beyond the limits, and what comes after Octets was not looked at
}

// Read opens the content and scans its header.
func Read(c mta.Content, visit func(*Field) error) (Header, error) {
	r, err := c.Open()
	if err != nil {
		return Header{}, fmt.Errorf("header: open: %w", err)
	}
	h, err := Scan(r, visit)
	r.Close() // nothing was written: what it says changes nothing
	return h, err
}

// Scan gives each field in order to visit, whose error ends it and is returned as it is. Otherwise only the reader's
// error is returned: there is no header that Scan does not read.
func Scan(r io.Reader, visit func(*Field) error) (Header, error) {
	s := scanners.Get().(*scanner)
	s.in.Reset(r)
	s.visit = visit
	err := s.scan()
	s.h.Octets = s.field.Span.Start
	h := s.h
	s.in.Reset(nil)
	*s = scanner{in: s.in, raw: s.raw[:0]}
	scanners.Put(s)
	return h, err
}

// scanners are used again: the buffers of one cost more to make than most headers to read.
var scanners = sync.Pool{New: func() any { return &scanner{in: bufio.NewReaderSize(nil, 16<<10)} }}

// scanner is one scan under way.
type scanner struct {
	in    *bufio.Reader
	visit func(*Field) error
	h     Header
	at    int64
	field Field  // the one that is being read; Span.Start is where it begins
	raw   []byte // its octets, at most MaxValue
	line  int    // octets of its current line
}

func (s *scanner) scan() error {
	begin := true // at the start of a line
	for {
		chunk, err := s.in.ReadSlice('\n')
		if begin && len(chunk) > 0 {
			if empty(chunk) {
				s.h.Ended = true
				return s.end()
			}
			if s.at > s.field.Span.Start && chunk[0] != ' ' && chunk[0] != '\t' {
				if err := s.end(); err != nil {
					return err
				}
			}
			if s.h.Fields == MaxFields {
				s.h.Over = true
				return nil
			}
			s.line = 0
		}
		s.add(chunk)
		if s.at > MaxOctets {
			s.h.Over = true
			return nil
		}
		switch {
		case err == nil:
			begin = true
		case errors.Is(err, bufio.ErrBufferFull):
			begin = false
		case errors.Is(err, io.EOF):
			return s.end()
		default:
			return fmt.Errorf("header: read: %w", err)
		}
	}
}

func empty(line []byte) bool {
	return line[0] == '\n' || len(line) == 2 && line[0] == '\r' && line[1] == '\n'
}

// add takes octets into the current field.
func (s *scanner) add(chunk []byte) {
	s.at += int64(len(chunk))
	if room := MaxValue - len(s.raw); len(chunk) <= room {
		s.raw = append(s.raw, chunk...)
	} else {
		s.raw = append(s.raw, chunk[:room]...)
		s.field.Cut = true
	}
	s.field.NUL = s.field.NUL || bytes.IndexByte(chunk, 0) >= 0
	s.line += len(bytes.TrimRight(chunk, "\r\n"))
	s.field.Longest = max(s.field.Longest, s.line)
}

// end gives the field that was read, if there is one, and makes room for the next.
func (s *scanner) end() error {
	if s.at == s.field.Span.Start {
		return nil
	}
	f := &s.field
	f.Span.End = s.at
	raw := s.raw
	if !f.Cut {
		raw = bytes.TrimSuffix(bytes.TrimSuffix(raw, []byte("\n")), []byte("\r"))
	}
	f.Name, f.Value = split(raw)
	s.h.Fields++
	err := s.visit(f)
	s.field = Field{Span: mta.Span{Start: s.at}}
	s.raw = s.raw[:0]
	return err
}
