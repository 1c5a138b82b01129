package mta

import (
	"io"
	"strings"
)

// Content is a message's content, header and body, with CRLF line ends, to be read as often as needed and by several
// readers at once.
type Content struct {
	Size int64
	Open func() (io.ReadCloser, error)
}

// Edit is what we do to a message's header on its way: whole fields of ours above our Received field, and whole fields
// left out that only we or the primary may write. Everything else passes as it came.
type Edit struct {
	Above string // complete fields, each ended by CRLF
	Drop  []Span // in order, not overlapping
}

// Span is a range of octets, from Start up to but without End.
type Span struct{ Start, End int64 }

// Dropped is how many octets are left out.
func (e *Edit) Dropped() int64 {
	var n int64
	for _, s := range e.Drop {
		n += s.End - s.Start
	}
	return n
}

// Apply gives the content as it goes on: Above, received (our own trace field, or nothing), then c without what is
// dropped. Its size is exact, c is read as it is asked for, and any number of readers may be open. Of spans out of order
// or beyond the content only what fits is dropped.
func (e Edit) Apply(received string, c Content) Content {
	top, drop, size := e.Above+received, make([]Span, 0, len(e.Drop)), c.Size
	at := int64(0)
	for _, s := range e.Drop {
		s.Start, s.End = max(s.Start, at), min(s.End, c.Size)
		if s.Start >= s.End {
			continue
		}
		drop, at = append(drop, s), s.End
		size -= s.End - s.Start
	}
	return Content{
		Size: int64(len(top)) + size,
		Open: func() (io.ReadCloser, error) {
			r, err := c.Open()
			if err != nil {
				return nil, err
			}
			return &edited{top: strings.NewReader(top), content: r, drop: drop}, nil
		},
	}
}

// edited reads a content with an Edit applied.
type edited struct {
	top     *strings.Reader
	content io.ReadCloser
	at      int64  // how much of content was read
	drop    []Span // what is still to be left out
}

func (r *edited) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if r.top.Len() > 0 {
		return r.top.Read(p)
	}
	for len(r.drop) > 0 && r.at == r.drop[0].Start {
		n, err := io.CopyN(io.Discard, r.content, r.drop[0].End-r.at)
		r.at += n
		if err == io.EOF {
			return 0, io.ErrUnexpectedEOF // shorter than it was said to be
		}
		if err != nil {
			return 0, err
		}
		r.drop = r.drop[1:]
	}
	if len(r.drop) > 0 {
		p = p[:min(int64(len(p)), r.drop[0].Start-r.at)]
	}
	n, err := r.content.Read(p)
	r.at += int64(n)
	return n, err
}

func (r *edited) Close() error { return r.content.Close() }

// Road is the way that a message takes through us.
type Road uint8

const (
	Spooled Road = iota // kept here until the primary takes it
	Inline              // the primary answers, as it happens
)
