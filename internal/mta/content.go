package mta

import "io"

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

// Road is the way that a message takes through us.
type Road uint8

const (
	Spooled Road = iota // kept here until the primary takes it
	Inline              // the primary answers, as it happens
)
