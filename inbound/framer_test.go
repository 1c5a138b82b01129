package inbound

import (
	"bytes"
	"strings"
	"testing"
)

// frame runs the framer over raw, handed to it in pieces of n octets.
func frame(raw string, n int, dots bool) (content string, rest int, done, bare bool) {
	f := framer{dots: dots}
	var out bytes.Buffer
	in := []byte(raw)
	for start := 0; start < len(in); {
		piece := in[start:min(start+n, len(in))]
		for len(piece) > 0 && f.state != ended {
			run, used := f.next(piece)
			out.Write(run)
			piece = piece[used:]
			start += used
		}
		if f.state == ended {
			return out.String(), len(in) - start, true, f.bare
		}
	}
	if !dots {
		out.Write(f.finish())
		return out.String(), 0, true, f.bare
	}
	return out.String(), 0, false, f.bare
}

// slowFrame is what the framer promises, written for reading and not for speed.
func slowFrame(raw string, dots bool) (content string, rest int, done, bare bool) {
	body := raw
	if dots {
		i := strings.Index("\r\n"+raw, "\r\n.\r\n")
		if i < 0 {
			return "", 0, false, false
		}
		body, rest = raw[:i], len(raw)-i-len(".\r\n")
	}
	lines := strings.Split(body, "\r\n")
	last := lines[len(lines)-1]
	for i, line := range lines {
		if dots {
			line = strings.TrimPrefix(line, ".")
		}
		loose, ok := looseLine(line, i == len(lines)-1)
		bare = bare || ok
		content += loose
		if i < len(lines)-1 {
			content += "\r\n"
		}
	}
	if !dots && last != "" && !strings.HasSuffix(content, "\r\n") {
		content += "\r\n"
	}
	return content, rest, true, bare
}

// looseLine normalises the newlines inside one CR LF line.
func looseLine(line string, last bool) (string, bool) {
	var out strings.Builder
	bare := false
	for i := 0; i < len(line); i++ {
		switch line[i] {
		case '\n':
			bare = true
			out.WriteString("\r\n")
		case '\r':
			bare = true
			if i+1 < len(line) && line[i+1] == '\r' {
				continue // a run of CRs is one newline
			}
			if i+1 == len(line) && !last {
				continue // and one with the CR LF that follows
			}
			out.WriteString("\r\n")
		default:
			out.WriteByte(line[i])
		}
	}
	return out.String(), bare
}

func TestOnlyCRLFDotCRLFEndsContent(t *testing.T) {
	tests := []struct {
		name, raw, content string
		bare               bool
	}{
		{"empty", ".\r\n", "", false},
		{"plain", "a\r\nb\r\n.\r\n", "a\r\nb\r\n", false},
		{"stuffed", "..\r\n..a\r\n.b\r\n.\r\n", ".\r\n.a\r\nb\r\n", false},
		{"LF.LF", "a\n.\nb\r\n.\r\n", "a\r\n.\r\nb\r\n", true},
		{"LF.CRLF", "a\n.\r\nb\r\n.\r\n", "a\r\n.\r\nb\r\n", true},
		{"CRLF.LF", "a\r\n.\nb\r\n.\r\n", "a\r\n\r\nb\r\n", true},
		{"CR.CR", "a\r.\rb\r\n.\r\n", "a\r\n.\r\nb\r\n", true},
		{"CR.CRLF", "a\r.\r\nb\r\n.\r\n", "a\r\n.\r\nb\r\n", true},
		{"CRLF.CR", "a\r\n.\rb\r\n.\r\n", "a\r\n\r\nb\r\n", true},
		{"CRLF.CRCRLF", "a\r\n.\r\r\nb\r\n.\r\n", "a\r\n\r\nb\r\n", true},
		{"CRCRLF.CRCRLF", "a\r\r\n.\r\r\nb\r\n.\r\n", "a\r\n\r\nb\r\n", true},
		{"CRCRLF.CRLF ends", "a\r\r\n.\r\n", "a\r\n", true},
		{"LF..", "a\n..b\r\n.\r\n", "a\r\n..b\r\n", true},
		{"NULs", "a\r\n\x00.\r\n.\x00\r\n.\r\n", "a\r\n\x00.\r\n\x00\r\n", false},
		{"CRs alone", "\r\r\rx\r\n.\r\n", "\r\nx\r\n", true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for n := 1; n <= len(tt.raw); n++ {
				content, rest, done, bare := frame(tt.raw, n, true)
				if content != tt.content || rest != 0 || !done || bare != tt.bare {
					t.Fatalf("in pieces of %d: got %q, rest %d, done %v, bare %v; want %q, bare %v",
						n, content, rest, done, bare, tt.content, tt.bare)
				}
			}
		})
	}
}

func FuzzFramerAgreesWithSlowReference(f *testing.F) {
	for _, s := range []string{
		".\r\n", "a\r\n.\r\nQUIT\r\n", "a\r\r\n.\r\n", "\r\n.\r\r\n.\r\n", "a\n.\n\r.\r\r\n.\r\n", "..\r\n.\r\n", "a\rb", "\r", "x\r\n\r",
	} {
		f.Add(s, uint8(3), true)
		f.Add(s, uint8(1), false)
	}
	f.Fuzz(func(t *testing.T, raw string, n uint8, dots bool) {
		wantContent, wantRest, wantDone, wantBare := slowFrame(raw, dots)
		content, rest, done, bare := frame(raw, int(n)+1, dots)
		if done != wantDone {
			t.Fatalf("%q: done %v, want %v", raw, done, wantDone)
		}
		if !done {
			return
		}
		if content != wantContent || rest != wantRest || bare != wantBare {
			t.Fatalf("%q (dots %v): got %q rest %d bare %v, want %q rest %d bare %v",
				raw, dots, content, rest, bare, wantContent, wantRest, wantBare)
		}
		if s := strings.ReplaceAll(content, "\r\n", ""); strings.ContainsAny(s, "\r\n") {
			t.Fatalf("%q: content %q has a bare newline", raw, content)
		}
	})
}
