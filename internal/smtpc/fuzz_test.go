package smtpc

import (
	"bufio"
	"bytes"
	"io"
	"strings"
	"testing"

	"understudy/internal/mta"
)

func FuzzReply(f *testing.F) {
	for _, s := range []string{"250 ok\r\n", "250-a\r\n250 b\r\n", "550 5.1.1 no\r\n", "250", "25\r\n", "250-a\r\n550 b\r\n", "\x00\r\n", "250 \xff\r\n", "999 x\r\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := readReply(bufio.NewReaderSize(bytes.NewReader(b), maxReplyLine))
		if err != nil {
			return
		}
		if r.Code < 200 || r.Code > 599 {
			t.Errorf("code %d", r.Code)
		}
		if strings.ContainsFunc(r.Text, func(c rune) bool { return c != '\n' && (c < ' ' || c == 0x7f) }) {
			t.Errorf("text %q", r.Text)
		}
		parseCaps(r.Text)
	})
}

// FuzzCommand wants each command to be one line, whatever an envelope holds.
func FuzzCommand(f *testing.F) {
	f.Add("a", "b.example", "env", "rfc822;x", "helo", "name")
	f.Add("a\r\nRCPT TO:<x>", "b> X=<", "a\r\nb", "utf-8;ü\r\n", "h\r\nQUIT", "n\r\n")
	f.Fuzz(func(t *testing.T, local, domain, envid, orcpt, helo, name string) {
		c := &Conn{caps: Caps{Size: true, DSN: true, SMTPUTF8: true, EightBitMIME: true}}
		p := mta.Path{Local: local, Domain: domain}
		m := &Message{From: p, Params: mta.Params{EnvID: envid, Ret: "HDRS", Body: envid}, Rcpts: []mta.Recipient{{Addr: p, ORcpt: orcpt}}}
		var lines []string
		if c.sendable(m) == nil {
			lines = append(lines, c.mailLine(m), c.rcptLine(&m.Rcpts[0]))
		}
		peer := &mta.Peer{Helo: helo, Name: name}
		lines = append(lines, xclientLines([]string{"NAME", "ADDR", "PORT", "PROTO", "HELO"}, peer)...)
		lines = append(lines, "EHLO "+heloOf(peer))
		for _, l := range lines {
			if strings.ContainsAny(l, "\r\n\x00") {
				t.Errorf("%q", l)
			}
		}
	})
}

func FuzzStuffing(f *testing.F) {
	f.Add([]byte(".\r\n..\r\nx"), uint8(3))
	f.Fuzz(func(t *testing.T, b []byte, cut uint8) {
		b = bytes.ReplaceAll(bytes.ReplaceAll(b, []byte("\r"), nil), []byte("\n"), []byte("\r\n"))
		var out bytes.Buffer
		s := stuffer{w: &out}
		for rest := b; len(rest) > 0; {
			n := min(int(cut)+1, len(rest))
			if err := s.write(rest[:n]); err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
		}
		s.end()
		var back bytes.Buffer
		r := bufio.NewReader(&out)
		for {
			l, err := r.ReadBytes('\n')
			if err != nil {
				t.Fatalf("no end in %q: %v", b, err)
			}
			if string(l) == ".\r\n" {
				break
			}
			back.Write(bytes.TrimPrefix(l, []byte(".")))
		}
		if _, err := r.ReadByte(); err != io.EOF {
			t.Fatal("something after the end")
		}
		want := b
		if len(b) > 0 && !bytes.HasSuffix(b, []byte("\n")) {
			want = append(bytes.Clone(b), "\r\n"...)
		}
		if !bytes.Equal(back.Bytes(), want) {
			t.Errorf("%q became %q", want, back.Bytes())
		}
	})
}
