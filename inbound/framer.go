package inbound

import "bytes"

// framer turns the octets of DATA or of BDAT chunks into content: lines that end in CR LF, without a bare CR or LF,
// with dot-stuffing undone. It is pure: the caller owns the buffer and the network.
//
// Only CR LF . CR LF ends DATA. What else looks like a newline (a bare LF, a run of CRs) becomes CR LF in the content
// but is no line start to the framing: a dot after it is content, so that no reader behind us can take it for the end.
type framer struct {
	dots  bool // DATA: a dot at a line's start is framing; in BDAT it is content
	state framerState
	bare  bool // a bare CR or LF was seen
}

type framerState uint8

const (
	lineStart  framerState = iota // after CR LF, and at the beginning
	looseStart                    // after a newline that is not CR LF
	inLine                        // anywhere else
	afterCR                       // a CR was taken and not yet given out
	afterDot                      // a dot at lineStart was taken and not yet given out
	afterDotCR                    // a dot and a CR, likewise
	ended                         // the end of DATA was read
)

var crlf = []byte("\r\n")

// next takes octets from in and returns a run of content, which is a part of in or a CR LF, and how many octets were
// used. It makes progress whenever in is not empty and the end was not reached; run may be empty.
func (f *framer) next(in []byte) (run []byte, used int) {
	if len(in) == 0 {
		return nil, 0
	}
	switch f.state {
	case ended:
		return nil, 0
	case afterCR:
		return f.nextAfterCR(in)
	case afterDot:
		if in[0] == '\r' {
			f.state = afterDotCR
			return nil, 1
		}
		f.state = inLine // the dot was stuffing (RFC 5321, 4.5.2)
	case afterDotCR:
		switch in[0] {
		case '\n':
			f.state = ended
			return nil, 1
		default:
			f.state = afterCR // the dot was stuffing; the CR is bare or belongs to a run
			return nil, 0
		}
	}
	return f.nextRun(in)
}

// nextAfterCR decides what the CR was that the last run left behind.
func (f *framer) nextAfterCR(in []byte) (run []byte, used int) {
	switch in[0] {
	case '\n':
		f.state = lineStart
		return crlf, 1
	case '\r': // CR CR LF is one newline
		f.bare = true
		return nil, 1
	default:
		f.bare = true
		f.state = looseStart
		return crlf, 0
	}
}

// nextRun returns the longest part of in that is content as it stands.
func (f *framer) nextRun(in []byte) (run []byte, used int) {
	i := 0
	for i < len(in) {
		if f.dots && f.state == lineStart && in[i] == '.' {
			if i > 0 {
				return in[:i], i
			}
			f.state = afterDot
			return nil, 1
		}
		lf := bytes.IndexByte(in[i:], '\n')
		line := in[i:]
		if lf >= 0 {
			line = in[i : i+lf]
		}
		cr := bytes.IndexByte(line, '\r')
		switch {
		case lf >= 0 && cr >= 0 && cr == lf-1:
			f.state = lineStart
			i += lf + 1
		case lf < 0 && cr < 0:
			f.state = inLine
			return in, len(in)
		case cr >= 0:
			return f.stop(in, i+cr, afterCR)
		default:
			return f.stop(in, i+lf, looseStart)
		}
	}
	return in, len(in)
}

// stop ends a run before the newline at i, or, if the run is empty, takes that newline.
func (f *framer) stop(in []byte, i int, after framerState) (run []byte, used int) {
	if i > 0 {
		if in[i-1] != '\n' {
			f.state = inLine
		}
		return in[:i], i
	}
	f.state = after
	if after == looseStart {
		f.bare = true
		return crlf, 1
	}
	return nil, 1
}

// finish returns what the last BDAT chunk lacks of a whole line. RFC 6376, 3.4 makes a missing last newline no
// difference to a signature, and DATA could not carry its absence anyway.
func (f *framer) finish() []byte {
	defer func() { f.state = ended }()
	switch f.state {
	case afterCR:
		f.bare = true
		return crlf
	case inLine:
		return crlf
	default:
		return nil
	}
}
