package dsn

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"mime/quotedprintable"
	"strings"
	"time"
	"unicode/utf8"

	"understudy/internal/mta"
)

// maxHeader is the most of a message's header that a report carries.
const maxHeader = 64 << 10

// Action is what became of a recipient (RFC 3464, 2.3.3).
type Action string

const (
	Failed  Action = "failed"
	Relayed Action = "relayed" // handed to a server that will not send reports itself
)

// Recipient is one recipient that is reported on.
type Recipient struct {
	Addr   mta.Path
	ORcpt  string // "type;address" as the sender gave it, or empty
	Action Action
	Reply  mta.Reply
	Remote string // who said it: a host, or host:port
	At     time.Time
}

// Report is all that a report says.
type Report struct {
	Hostname string // ours
	ID       mta.ID // of the report
	To       mta.Path
	Now      time.Time
	Original mta.ID    // the message that it is about
	Arrived  time.Time // when that came
	EnvID    string
	Rcpts    []Recipient
	Header   []byte // of the message; UTF-8 only if the sender takes that
	UTF8     bool   // the message came with SMTPUTF8, so its sender reads RFC 6533
}

// Write gives the report as a message with CRLF line ends.
func (r *Report) Write() []byte {
	var b bytes.Buffer
	boundary := "=_" + r.ID.String()
	line := func(format string, args ...any) {
		b.WriteString(clean(fmt.Sprintf(format, args...), ""))
		b.WriteString("\r\n")
	}
	line("Received: by %s (Understudy) id %s; %s", r.Hostname, r.ID, date(r.Now))
	line("Date: %s", date(r.Now))
	line("From: Mail Delivery System <MAILER-DAEMON@%s>", r.Hostname)
	line("To: <%s>", r.address(r.To))
	line("Subject: %s", r.subject())
	line("Message-ID: <%s@%s>", r.ID, r.Hostname)
	line("Auto-Submitted: auto-replied")
	line("MIME-Version: 1.0")
	line("Content-Type: multipart/report; report-type=delivery-status;")
	line(" boundary=\"%s\"", boundary)
	line("")
	line("--%s", boundary)
	r.text(&b, line)
	line("--%s", boundary)
	r.status(line)
	line("--%s", boundary)
	r.header(&b, line)
	line("--%s--", boundary)
	return b.Bytes()
}

func date(t time.Time) string { return t.Format("Mon, 2 Jan 2006 15:04:05 -0700") }

func (r *Report) failed() bool {
	for i := range r.Rcpts {
		if r.Rcpts[i].Action == Failed {
			return true
		}
	}
	return false
}

func (r *Report) subject() string {
	if r.failed() {
		return "Undelivered mail returned to sender"
	}
	return "Mail passed on to a system that sends no reports"
}

// text is the part for people.
func (r *Report) text(b *bytes.Buffer, line func(string, ...any)) {
	line("Content-Type: text/plain; charset=utf-8")
	line("Content-Transfer-Encoding: quoted-printable")
	line("")
	var t strings.Builder
	fmt.Fprintf(&t, "This is the mail system at %s.\n\n", r.Hostname)
	if r.failed() {
		t.WriteString("Your message could not be delivered to the recipients below. Only its\nheader is attached.\n\n")
	} else {
		t.WriteString("Your message was passed on for the recipients below. The mail server that\ntook it does not send delivery reports.\n\n")
	}
	for i := range r.Rcpts {
		x := &r.Rcpts[i]
		fmt.Fprintf(&t, "<%s>\n", x.Addr)
		if x.Reply.Code != 0 {
			who := "the mail server"
			if x.Remote != "" {
				who = x.Remote
			}
			fmt.Fprintf(&t, "    %s said: %s\n", who, clip(x.Reply.String()))
		}
		t.WriteString("\n")
	}
	w := quotedprintable.NewWriter(b)
	io.WriteString(w, clean(t.String(), "\n"))
	w.Close()
}

// status is the part for programs (RFC 3464, 2).
func (r *Report) status(line func(string, ...any)) {
	if r.UTF8 {
		line("Content-Type: message/global-delivery-status") // RFC 6533, 5
		line("Content-Transfer-Encoding: 8bit")
	} else {
		line("Content-Type: message/delivery-status")
	}
	line("")
	line("Reporting-MTA: dns; %s", r.Hostname)
	if r.EnvID != "" {
		line("Original-Envelope-Id: %s", xtext(r.EnvID))
	}
	line("X-Understudy-Queue-ID: %s", r.Original)
	line("Arrival-Date: %s", date(r.Arrived))
	for i := range r.Rcpts {
		r.recipient(&r.Rcpts[i], line)
	}
	line("")
}

func (r *Report) recipient(x *Recipient, line func(string, ...any)) {
	line("")
	if kind, addr, ok := strings.Cut(x.ORcpt, ";"); ok && token(kind) {
		line("Original-Recipient: %s;%s", kind, r.typed(addr))
	}
	kind := "rfc822"
	if !x.Addr.IsASCII() {
		kind = "utf-8"
	}
	line("Final-Recipient: %s; %s", kind, r.typed(x.Addr.String()))
	line("Action: %s", x.Action)
	line("Status: %s", status(x))
	if x.Remote != "" {
		line("Remote-MTA: dns; %s", host(x.Remote))
	}
	if x.Reply.Code != 0 {
		line("Diagnostic-Code: smtp; %s", clip(ascii(x.Reply.String())))
	}
	line("Last-Attempt-Date: %s", date(x.At))
}

// typed writes an address into a field of the status part.
func (r *Report) typed(a string) string {
	if r.UTF8 {
		return a
	}
	return ascii(a)
}

// address writes an address into a header field.
func (r *Report) address(p mta.Path) string {
	if r.UTF8 {
		return p.String()
	}
	return ascii(p.String())
}

// status is the enhanced code (RFC 3463), or what the class alone says.
func status(x *Recipient) string {
	switch {
	case x.Reply.Enhanced != "" && (x.Action != Failed || x.Reply.Enhanced[0] != '2'):
		return x.Reply.Enhanced
	case x.Action == Failed:
		return "5.0.0"
	}
	return "2.0.0"
}

func host(remote string) string {
	if i := strings.LastIndexByte(remote, ':'); i > 0 && !strings.HasSuffix(remote, "]") {
		return strings.Trim(remote[:i], "[]")
	}
	return remote
}

// header is the part that shows which message it was.
func (r *Report) header(b *bytes.Buffer, line func(string, ...any)) {
	h := headerOf(r.Header)
	switch {
	case r.UTF8:
		line("Content-Type: message/global-headers") // RFC 6533, 6
		line("Content-Transfer-Encoding: 8bit")
	case isASCII(h):
		line("Content-Type: text/rfc822-headers")
	default: // mail with raw 8-bit fields, to a sender who did not ask for UTF-8
		line("Content-Type: text/rfc822-headers; charset=utf-8")
		line("Content-Transfer-Encoding: base64")
		line("")
		wrap(b, base64.StdEncoding.EncodeToString(h))
		return
	}
	line("")
	b.Write(h)
	line("")
}

// headerOf cuts the header out of a message's beginning: to the empty line, whole lines only, CRLF ends.
func headerOf(m []byte) []byte {
	m = m[:min(len(m), maxHeader)]
	switch i := bytes.Index(m, []byte("\r\n\r\n")); {
	case bytes.HasPrefix(m, []byte("\r\n")):
		return nil
	case i >= 0:
		return m[:i+2]
	}
	return m[:bytes.LastIndexByte(m, '\n')+1]
}

// ReadHeader reads as much of a message as a report may carry.
func ReadHeader(r io.Reader) ([]byte, error) {
	b := make([]byte, maxHeader)
	n, err := io.ReadFull(r, b)
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		err = nil
	}
	return b[:n], err
}

// clean makes text safe for a report: no control characters, and no line breaks but those in keep.
func clean(s, keep string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case strings.ContainsRune(keep, r):
			return r
		case r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 || r == utf8.RuneError:
			return '?'
		}
		return r
	}, s)
}

// clip keeps a line below what RFC 5322, 2.1.1 allows.
func clip(s string) string {
	const most = 700
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + " [...]"
}

// ascii writes characters outside ASCII as RFC 6533, 3 does.
func ascii(s string) string {
	var b strings.Builder
	for _, r := range s {
		if r < 0x80 {
			b.WriteRune(r)
			continue
		}
		fmt.Fprintf(&b, `\x{%X}`, r)
	}
	return b.String()
}

func isASCII(b []byte) bool {
	for _, c := range b {
		if c >= 0x80 {
			return false
		}
	}
	return true
}

func token(s string) bool {
	return s != "" && strings.IndexFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-'
	}) < 0
}

// xtext encodes as RFC 3461, 4 wants it.
func xtext(s string) string {
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; c > ' ' && c < 0x7f && c != '+' && c != '=' {
			b.WriteByte(c)
			continue
		}
		fmt.Fprintf(&b, "+%02X", s[i])
	}
	return b.String()
}

// wrap writes base64 in lines.
func wrap(b *bytes.Buffer, s string) {
	for len(s) > 0 {
		n := min(len(s), 76)
		b.WriteString(s[:n] + "\r\n")
		s = s[n:]
	}
}
