package header

import (
	"bytes"
	"strings"

	"understudy/internal/mta"
)

// MaxValue is how much of one field is kept; its span covers all of it.
const MaxValue = 64 << 10

// Field is one header field with its continuation lines, or a line that is none: then Name is empty and Value is all
// of it.
type Field struct {
	Name    string   // as written, without blanks before the colon
	Value   []byte   // what follows the colon, folded as it came, without the last line end; valid until the next field
	Cut     bool     // Value is only the first MaxValue octets or so
	Span    mta.Span // with its line ends
	Longest int      // octets of its longest line, without the line end
	NUL     bool     // it holds a NUL
}

// Is reports whether the field has this name.
func (f *Field) Is(name string) bool {
	return len(f.Name) == len(name) && strings.EqualFold(f.Name, name) // both are ASCII
}

// Text is the value unfolded (RFC 5322, 2.2.3), without blanks around it.
func (f *Field) Text() string {
	v := f.Value
	if bytes.IndexByte(v, '\n') >= 0 || bytes.IndexByte(v, '\r') >= 0 {
		v = bytes.Map(func(r rune) rune {
			if r == '\r' || r == '\n' {
				return -1
			}
			return r
		}, v)
	}
	return strings.Trim(string(v), " \t")
}

// split takes the name off the front of a raw field. Blanks and even folds before the colon are read over, as many
// readers do (RFC 5322, 4.5.8); what else is no printable ASCII makes no name (RFC 5322, 2.2).
func split(raw []byte) (name string, value []byte) {
	i := bytes.IndexByte(raw, ':')
	if i < 0 {
		return "", raw
	}
	n := bytes.TrimRight(raw[:i], " \t\r\n")
	if len(n) == 0 {
		return "", raw
	}
	for _, c := range n {
		if c <= ' ' || c >= 0x7f {
			return "", raw
		}
	}
	return string(n), raw[i+1:]
}
