package filter

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"strings"
)

// maxField is the most of one field that a milter sees, as with Postfix (header_size_limit).
const maxField = 100 << 10

// fields reads a message's header field by field. A line that can't be one ends the header, as in mail servers.
type fields struct {
	r    *bufio.Reader
	line []byte // read ahead: the first line of the next field, or of the body
	more bool   // the line that was read last is longer than the buffer, and the rest of it is still in r
	odd  bool   // line belongs to the body
	any  bool   // a line was seen
}

// next gives a field: its name, and what follows the colon, with LF between folded lines and no line end. Not ok: the
// header has ended.
func (f *fields) next() (name, value string, ok bool, err error) {
	first, err := f.take()
	if err != nil {
		return "", "", false, err
	}
	if !f.any && (bytes.HasPrefix(first, []byte("From ")) || bytes.HasPrefix(first, []byte(">From "))) {
		f.any = true // a mailbox's separator, which Postfix takes off
		if err := f.skip(); err != nil {
			return "", "", false, err
		}
		return f.next()
	}
	f.any = true
	colon := bytes.IndexByte(first, ':')
	if len(bytes.TrimRight(first, "\r\n")) == 0 {
		return "", "", false, nil
	}
	if colon <= 0 || !fieldName(first[:colon]) {
		f.line, f.odd = first, true
		return "", "", false, nil
	}
	value, err = f.value(first[colon+1:])
	return strings.TrimRight(string(first[:colon]), " \t"), value, err == nil, err
}

// value gathers a field's lines. What is beyond the bounds is left out.
func (f *fields) value(first []byte) (string, error) {
	var b strings.Builder
	b.WriteString(fieldText(first))
	for {
		if err := f.skip(); err != nil {
			return "", err
		}
		l, err := f.take()
		if err != nil {
			return "", err
		}
		if len(l) == 0 || l[0] != ' ' && l[0] != '\t' {
			f.line = l
			return b.String(), nil
		}
		if b.Len()+len(l) < maxField {
			b.WriteByte('\n')
			b.WriteString(fieldText(l))
		}
	}
}

// rest is the body.
func (f *fields) rest() io.Reader {
	if f.odd {
		return io.MultiReader(bytes.NewReader(f.line), f.r)
	}
	return f.r
}

// take gives the next line with its end, or as much of it as fits the buffer; none at the end of the message.
func (f *fields) take() ([]byte, error) {
	if l := f.line; l != nil {
		f.line = nil
		return l, nil
	}
	part, err := f.r.ReadSlice('\n')
	f.more = errors.Is(err, bufio.ErrBufferFull)
	if err != nil && err != io.EOF && !f.more {
		return nil, err
	}
	return bytes.Clone(part), nil
}

// skip leaves out the rest of a line that did not fit.
func (f *fields) skip() error {
	for f.more {
		_, err := f.r.ReadSlice('\n')
		if f.more = errors.Is(err, bufio.ErrBufferFull); err != nil && err != io.EOF && !f.more {
			return err
		}
	}
	return nil
}

// fieldText is a line without its end. A NUL would end the value before its time.
func fieldText(l []byte) string {
	return strings.ReplaceAll(string(bytes.TrimRight(l, "\r\n")), "\x00", "?")
}

// fieldName allows blanks before the colon, which are obsolete but taken (RFC 5322, 4.5).
func fieldName(b []byte) bool {
	b = bytes.TrimRight(b, " \t")
	for _, c := range b {
		if c <= ' ' || c > '~' {
			return false
		}
	}
	return len(b) > 0
}
