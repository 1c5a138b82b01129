package dsn

import (
	"bufio"
	"bytes"
	"io"
	"mime"
	"mime/multipart"
	"net/mail"
	"net/textproto"
	"strings"
	"testing"
	"time"

	"understudy/internal/mta"
)

func path(t testing.TB, s string) mta.Path {
	t.Helper()
	p, err := mta.ParsePath(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func report(t testing.TB) *Report {
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	return &Report{
		Hostname: "mx2.example.org", ID: mta.NewID(now), To: path(t, "bob@example.net"), Now: now, Original: mta.NewID(now.Add(-time.Hour)),
		Arrived: now.Add(-time.Hour), EnvID: "QQ 314", Header: []byte("From: bob\r\nSubject: hello\r\n\r\nsecret body\r\n"),
		Rcpts: []Recipient{{Addr: path(t, "a@example.org"), ORcpt: "rfc822;alias@example.org", Action: Failed,
			Reply: *mta.NewReply(550, "5.1.1", "nobody\nhere"), Remote: "mx1.example.org:25", At: now}},
	}
}

// parts reads a report as a mail program would.
func parts(t *testing.T, b []byte) (*mail.Message, []string, []string) {
	t.Helper()
	for i, l := range bytes.Split(b, []byte("\n")) {
		if len(l) > 0 && (l[len(l)-1] != '\r' || bytes.IndexByte(l[:len(l)-1], '\r') >= 0) || len(l) > 999 {
			t.Errorf("line %d is not one: %.100q", i, l)
		}
	}
	m, err := mail.ReadMessage(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	kind, params, err := mime.ParseMediaType(m.Header.Get("Content-Type"))
	if err != nil || kind != "multipart/report" || params["report-type"] != "delivery-status" {
		t.Fatal(kind, params, err)
	}
	r := multipart.NewReader(m.Body, params["boundary"])
	var types, bodies []string
	for {
		p, err := r.NextPart()
		if err == io.EOF {
			return m, types, bodies
		}
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(p)
		if err != nil {
			t.Fatal(err)
		}
		types, bodies = append(types, p.Header.Get("Content-Type")), append(bodies, string(body))
	}
}

func TestAReportSaysWhoWhatAndWhyAndShowsNoContent(t *testing.T) {
	b := report(t).Write()
	m, types, bodies := parts(t, b)
	if m.Header.Get("To") != "<bob@example.net>" || m.Header.Get("Auto-Submitted") != "auto-replied" {
		t.Errorf("%v", m.Header)
	}
	if want := "text/plain; charset=utf-8, message/delivery-status, text/rfc822-headers"; strings.Join(types, ", ") != want {
		t.Errorf("%q", types)
	}
	status := textproto.NewReader(bufio.NewReader(strings.NewReader(bodies[1])))
	of, err := status.ReadMIMEHeader()
	if err != nil || of.Get("Reporting-Mta") != "dns; mx2.example.org" || of.Get("Original-Envelope-Id") != "QQ+20314" {
		t.Error(of, err)
	}
	rcpt, err := status.ReadMIMEHeader()
	if err != nil && err != io.EOF {
		t.Fatal(err)
	}
	for k, want := range map[string]string{"Original-Recipient": "rfc822;alias@example.org", "Final-Recipient": "rfc822; a@example.org", "Action": "failed",
		"Status": "5.1.1", "Remote-Mta": "dns; mx1.example.org", "Diagnostic-Code": "smtp; 550 5.1.1 nobody here"} {
		if got := rcpt.Get(k); got != want {
			t.Errorf("%s: %q, want %q", k, got, want)
		}
	}
	if !strings.Contains(bodies[2], "Subject: hello") || bytes.Contains(b, []byte("secret")) {
		t.Errorf("%q", bodies[2])
	}
}

func TestNothingBreaksOutOfALine(t *testing.T) {
	r := report(t)
	evil := "x\r\n\r\n--boundary\r\nBcc: all@example.net\r\n.\r\n"
	r.EnvID = evil
	r.Rcpts[0].ORcpt = "rfc822;" + evil
	r.Rcpts[0].Reply = mta.Reply{Code: 550, Text: evil + strings.Repeat("long ", 5000)}
	r.Rcpts[0].Remote = evil
	m, types, _ := parts(t, r.Write())
	if len(types) != 3 || m.Header.Get("Bcc") != "" {
		t.Errorf("%q %v", types, m.Header)
	}
}

func TestInternationalAddresses(t *testing.T) {
	r := report(t)
	r.Rcpts[0].Addr = path(t, "jürgen@example.org")
	_, types, bodies := parts(t, r.Write())
	if types[1] != "message/delivery-status" || !strings.Contains(bodies[1], `utf-8; j\x{FC}rgen@example.org`) {
		t.Errorf("%q %q", types, bodies[1])
	}
	r.UTF8 = true
	_, types, bodies = parts(t, r.Write())
	if types[1] != "message/global-delivery-status" || types[2] != "message/global-headers" || !strings.Contains(bodies[1], "utf-8; jürgen@example.org") {
		t.Errorf("%q %q", types, bodies[1])
	}
}

func TestOnlyTheHeaderIsShownWhateverTheMessageLooksLike(t *testing.T) {
	for in, want := range map[string]string{
		"":                                "",
		"\r\nbody\r\n":                    "",
		"A: b\r\n\r\nbody":                "A: b\r\n",
		"A: b\r\nC: d\r\n":                "A: b\r\nC: d\r\n",
		"A: b\r\nC: d":                    "A: b\r\n",
		"no line at all":                  "",
		strings.Repeat("A: b\r\n", 11000): strings.Repeat("A: b\r\n", maxHeader/6),
	} {
		if got := string(headerOf([]byte(in))); got != want {
			t.Errorf("%.30q: %d octets, want %d", in, len(got), len(want))
		}
	}
}

func FuzzReport(f *testing.F) {
	f.Add("a", "b", "rfc822;x", "h", []byte("A: b\r\n\r\n"))
	f.Fuzz(func(t *testing.T, envid, text, orcpt, remote string, header []byte) {
		r := report(t)
		header = bytes.ReplaceAll(bytes.ReplaceAll(header, []byte("\r"), nil), []byte("\n"), []byte("\r\n"))
		r.EnvID, r.Rcpts[0].Reply.Text, r.Rcpts[0].ORcpt, r.Rcpts[0].Remote, r.Header = envid, text, orcpt, remote, header
		b := r.Write()
		status, _, _ := bytes.Cut(b, []byte("text/rfc822-headers"))
		for l := range bytes.SplitSeq(status, []byte("\r\n")) {
			if bytes.ContainsAny(l, "\r\n\x00") {
				t.Errorf("%q", l)
			}
		}
	})
}
