package smtpc

import (
	"bufio"
	"errors"
	"io"
	"strings"
	"unicode/utf8"

	"understudy/internal/mta"
)

const (
	maxReplyLine  = 4096 // octets; RFC 5321, 4.5.3.1.5 says 512, EHLO lines of large sites are longer
	maxReplyLines = 100  // a reply that never ends is an attack or a fault
)

// ErrGarbage is in the chain when a primary sent what is no SMTP reply, or one that can't be the answer.
var ErrGarbage = errors.New("not an SMTP reply")

// readReply reads one reply, of one line or more. The text is clean of control characters, so that it can be logged.
func readReply(r *bufio.Reader) (mta.Reply, error) {
	code, text := 0, ""
	for n := range maxReplyLines {
		line, err := readLine(r)
		if err != nil {
			return mta.Reply{}, err
		}
		c, more, rest, ok := parseReplyLine(line)
		if !ok || n > 0 && c != code {
			return mta.Reply{}, ErrGarbage
		}
		code = c
		if n > 0 {
			text += "\n"
		}
		text += rest
		if !more {
			return mta.ParseReply(code, text), nil
		}
	}
	return mta.Reply{}, ErrGarbage
}

// readLine gives a line without its end; the bytes are good until the next read.
func readLine(r *bufio.Reader) ([]byte, error) {
	line, err := r.ReadSlice('\n')
	switch {
	case errors.Is(err, bufio.ErrBufferFull):
		return nil, ErrGarbage
	case err == io.EOF && len(line) > 0:
		return nil, io.ErrUnexpectedEOF // half a reply
	case err != nil:
		return nil, err
	}
	line = line[:len(line)-1]
	if n := len(line); n > 0 && line[n-1] == '\r' {
		line = line[:n-1]
	}
	return line, nil
}

// parseReplyLine splits "250-text"; more tells whether another line follows.
func parseReplyLine(line []byte) (code int, more bool, text string, ok bool) {
	if len(line) < 3 || line[0] < '2' || line[0] > '5' || !digit(line[1]) || !digit(line[2]) {
		return 0, false, "", false
	}
	code = int(line[0]-'0')*100 + int(line[1]-'0')*10 + int(line[2]-'0')
	if len(line) == 3 {
		return code, false, "", true
	}
	if line[3] != ' ' && line[3] != '-' {
		return 0, false, "", false
	}
	return code, line[3] == '-', printable(line[4:]), true
}

func digit(c byte) bool { return c >= '0' && c <= '9' }

// printable replaces what a terminal or a log must not see.
func printable(b []byte) string {
	for _, c := range b {
		if c < 0x20 || c >= 0x7f {
			return strings.Map(func(r rune) rune {
				if r < 0x20 || r >= 0x7f && r < 0xa0 || r == utf8.RuneError {
					return '?'
				}
				return r
			}, string(b))
		}
	}
	return string(b)
}
