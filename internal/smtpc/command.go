package smtpc

import (
	"strconv"
	"strings"

	"understudy/internal/mta"
)

// sendable tells what stands against sending m over this session; nil if nothing does.
func (c *Conn) sendable(m *Message) error {
	if err := c.mailable(m); err != nil {
		return err
	}
	if !c.caps.EightBitMIME && announced8Bit(m) && (m.Content == nil || !isASCII(m.Content)) {
		return ErrNeeds8Bit
	}
	for i := range m.Rcpts {
		if !safe(m.Rcpts[i].Addr) || m.Rcpts[i].Addr.IsNull() {
			return ErrUnsafe
		}
	}
	if m.Content != nil && !clean(m.Content) {
		return contentError(ErrBare)
	}
	return nil
}

// mailable is sendable for what MAIL says.
func (c *Conn) mailable(m *Message) error {
	switch {
	case c.caps.SizeLimit > 0 && m.Size > c.caps.SizeLimit:
		return ErrTooBig
	case m.Params.RequireTLS && !c.keepsRequireTLS():
		return ErrNeedsRequireTLS
	case !c.caps.SMTPUTF8 && needsUTF8(m):
		return ErrNeedsUTF8
	case !safe(m.From):
		return ErrUnsafe
	}
	return nil
}

func announced8Bit(m *Message) bool { return strings.EqualFold(m.Params.Body, "8BITMIME") }

func needsUTF8(m *Message) bool {
	if m.Params.SMTPUTF8 || !m.From.IsASCII() {
		return true
	}
	for i := range m.Rcpts {
		if !m.Rcpts[i].Addr.IsASCII() {
			return true
		}
	}
	return false
}

// safe holds a path once more against what could end a path or a line: whatever it went through since it was parsed,
// no command of a sender's making leaves here.
func safe(p mta.Path) bool {
	for i := range len(p.Local) {
		if c := p.Local[i]; c < ' ' || c == 0x7f {
			return false
		}
	}
	return strings.IndexFunc(p.Domain, func(r rune) bool { return r <= ' ' || r == 0x7f || r == '<' || r == '>' || r == '"' }) < 0
}

func isASCII(b []byte) bool {
	for _, c := range b {
		if c >= 0x80 {
			return false
		}
	}
	return true
}

// mailLine is MAIL with the parameters that the primary understands.
func (c *Conn) mailLine(m *Message) string {
	var b strings.Builder
	b.WriteString("MAIL FROM:<" + m.From.String() + ">")
	if c.caps.Size && m.Size >= 0 {
		b.WriteString(" SIZE=" + strconv.FormatInt(m.Size, 10))
	}
	if body := strings.ToUpper(m.Params.Body); c.caps.EightBitMIME && (body == "7BIT" || body == "8BITMIME") {
		b.WriteString(" BODY=" + body)
	}
	if c.caps.SMTPUTF8 && needsUTF8(m) {
		b.WriteString(" SMTPUTF8")
	}
	if m.Params.RequireTLS {
		b.WriteString(" REQUIRETLS")
	}
	if c.caps.DSN {
		if ret := strings.ToUpper(m.Params.Ret); ret == "FULL" || ret == "HDRS" {
			b.WriteString(" RET=" + ret)
		}
		if m.Params.EnvID != "" {
			b.WriteString(" ENVID=" + xtext(m.Params.EnvID))
		}
	}
	return b.String()
}

// rcptLine is RCPT with its DSN parameters, where the primary knows them.
func (c *Conn) rcptLine(r *mta.Recipient) string {
	line := "RCPT TO:<" + r.Addr.String() + ">"
	if !c.caps.DSN {
		return line
	}
	if n := notify(r.Notify); n != "" {
		line += " NOTIFY=" + n
	}
	if kind, addr, ok := strings.Cut(r.ORcpt, ";"); ok && isAtom(kind) && addr != "" {
		if strings.EqualFold(kind, "utf-8") {
			return line + " ORCPT=" + kind + ";" + utf8Xtext(addr)
		}
		return line + " ORCPT=" + kind + ";" + xtext(addr)
	}
	return line
}

func notify(n mta.Notify) string {
	if n&mta.NotifyNever != 0 {
		return "NEVER"
	}
	var on []string
	if n&mta.NotifySuccess != 0 {
		on = append(on, "SUCCESS")
	}
	if n&mta.NotifyFailure != 0 {
		on = append(on, "FAILURE")
	}
	if n&mta.NotifyDelay != 0 {
		on = append(on, "DELAY")
	}
	return strings.Join(on, ",")
}

func isAtom(s string) bool {
	return s != "" && strings.IndexFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-'
	}) < 0
}

// xtext encodes as RFC 3461, 4 wants it.
func xtext(s string) string {
	var b strings.Builder
	for i := range len(s) {
		c := s[i]
		if c > ' ' && c < 0x7f && c != '+' && c != '=' {
			b.WriteByte(c)
			continue
		}
		const hex = "0123456789ABCDEF"
		b.Write([]byte{'+', hex[c>>4], hex[c&15]})
	}
	return b.String()
}

// utf8Xtext encodes an address of type utf-8 so that it passes where SMTPUTF8 is not known too (RFC 6533, 3).
func utf8Xtext(s string) string {
	var b strings.Builder
	for _, r := range s {
		if r > ' ' && r < 0x7f && r != '+' && r != '=' && r != '\\' {
			b.WriteRune(r)
			continue
		}
		b.WriteString(`\x{` + strings.ToUpper(strconv.FormatInt(int64(r), 16)) + `}`)
	}
	return b.String()
}
