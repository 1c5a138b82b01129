package filter

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"understudy/internal/mta"
)

// safe fails where a finding could not stand in a reply or a log.
func safe(t *testing.T, found []mta.Finding) {
	t.Helper()
	for _, f := range found {
		for _, s := range []string{f.Name, f.Text, f.Detail, f.Status} {
			if s != line(s, maxDetail) {
				t.Errorf("not neutered: %q", s)
			}
		}
		if len(f.Name) > maxName+len("rspamd:") || len(f.Text) > maxText+len("the message has a virus: ") {
			t.Errorf("not bounded: %+v", f)
		}
		v := mta.Verdict{Action: f.Action, Findings: found}
		if r := v.Reply(); r != nil && len(r.String()) > 500 {
			t.Errorf("the reply is too long: %s", r)
		}
	}
}

func FuzzRspamd(f *testing.F) {
	f.Add(`{"action":"reject","score":15,"required_score":15,"symbols":{"GTUBE":{"score":1e300}},"messages":{"smtp_message":"no"}}`)
	f.Add(`{"action":"greylist","messages":[]}`)
	f.Add(`{"error":"x"}`)
	f.Fuzz(func(t *testing.T, s string) {
		found, err := rspamdFindings([]byte(s))
		if err != nil && found != nil {
			t.Error("findings beside an error")
		}
		safe(t, found)
	})
}

func FuzzSpamd(f *testing.F) {
	f.Add("SPAMD/1.1 0 EX_OK\r\nContent-length: 5\r\nSpam: True ; 15.0 / 5.0\r\n\r\nGTUBE")
	f.Add("SPAMD/1.0 76 no\r\n")
	f.Fuzz(func(t *testing.T, s string) {
		a, err := readSpamd(bufio.NewReaderSize(strings.NewReader(s), maxSpamdLine))
		if err == nil {
			safe(t, a.findings(10))
		}
	})
}

func FuzzClamd(f *testing.F) {
	f.Add("stream: Eicar-Test-Signature FOUND\x00")
	f.Add("INSTREAM size limit exceeded. ERROR\x00")
	f.Fuzz(func(t *testing.T, s string) {
		a, err := readClamd(strings.NewReader(s))
		if err != nil {
			return
		}
		found, err := clamdFindings(a)
		safe(t, found)
		if len(found) == 0 && err == nil && !strings.Contains(a, "OK") {
			t.Errorf("%q is clean", a)
		}
	})
}

// FuzzMilter gives a milter's side of the whole conversation.
func FuzzMilter(f *testing.F) {
	neg := "\x00\x00\x00\x0dO\x00\x00\x00\x06\x00\x00\x00\x00\x00\x00\x00\x00"
	f.Add(neg + strings.Repeat("\x00\x00\x00\x01c", 40))
	f.Add(neg + "\x00\x00\x00\x01c\x00\x00\x00\x01c\x00\x00\x00\x0ey550 5.7.1 no\x00")
	f.Add("\x00\x00\x00\x0dO\x00\x00\x00\x06\x00\x00\x00\x00\x00\x10\x03\x7f" + "\x00\x00\x00\x07qodd\r\n\x00\x00\x00\x00\x01a")
	f.Fuzz(func(t *testing.T, s string) {
		m := &message{env: envelope(), content: content(plainMail), hostname: "mx2.example.org"}
		talk, err := begin(&conn{Conn: &replay{Reader: strings.NewReader(s)}, stop: func() bool { return true }}, m, false)
		if err != nil {
			return
		}
		defer talk.end()
		v, err := talk.run()
		if err == nil {
			safe(t, v.findings("m"))
		}
	})
}

// replay is a connection on which everything was said already.
type replay struct{ io.Reader }

func (replay) Write(p []byte) (int, error)      { return len(p), nil }
func (replay) Close() error                     { return nil }
func (replay) LocalAddr() net.Addr              { return nil }
func (replay) RemoteAddr() net.Addr             { return nil }
func (replay) SetDeadline(time.Time) error      { return nil }
func (replay) SetReadDeadline(time.Time) error  { return nil }
func (replay) SetWriteDeadline(time.Time) error { return nil }

// FuzzFields: a milter sees every octet of the body, and nothing of it twice, whatever the header is made of.
func FuzzFields(f *testing.F) {
	f.Add("From: a\r\nSubject: b\r\n c\r\n\r\nbody", 64)
	f.Add("From x\r\nA:b\r\nno field\r\nbody", 16)
	f.Add("A: "+strings.Repeat("x", 300)+"\r\n\r\n"+strings.Repeat("y", 300), 16)
	f.Fuzz(func(t *testing.T, s string, size int) {
		h := &fields{r: bufio.NewReaderSize(strings.NewReader(s), 16+max(0, size)%512)}
		for {
			name, value, ok, err := h.next()
			if err != nil {
				t.Fatal(err)
			}
			if !ok {
				break
			}
			if name == "" || strings.ContainsAny(name, ": \r\n\x00") || strings.ContainsAny(value, "\x00") || len(value) > maxField+4096 {
				t.Errorf("field %q: %q", name, value)
			}
		}
		rest, err := io.ReadAll(h.rest())
		if err != nil || !strings.HasSuffix(s, string(rest)) {
			t.Errorf("the body is %q, %v", rest, err)
		}
		if i := strings.Index(s, "\r\n\r\n"); i >= 0 && len(rest) < len(s)-i-4 && !bytes.Contains([]byte(s[:i]), []byte("\n\n")) {
			t.Errorf("of the body %q only %q is left", s[i+4:], rest)
		}
	})
}
