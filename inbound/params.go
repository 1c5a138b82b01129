package inbound

import (
	"errors"
	"strconv"
	"strings"
	"unicode/utf8"

	"understudy/internal/mta"
)

// mailParams are the parameters of MAIL: those that travel with the message, and those that are for us.
type mailParams struct {
	mta.Params
	size int64 // -1 if not given
}

// rcptParams are the parameters of RCPT.
type rcptParams struct {
	notify mta.Notify
	orcpt  string
}

// offers are the extensions whose parameters the client may use now.
type offers struct {
	utf8, dsn, eightBit, requireTLS bool
}

func badParam(name string) *mta.Reply {
	return mta.NewReply(501, "5.5.4", "%s has a value that is not valid", name)
}

func unknownParam(name string) *mta.Reply {
	return mta.NewReply(555, "5.5.4", "parameter %s is not supported", printable(name))
}

// eachParam calls f for each parameter, its name in upper case, and refuses one that comes twice.
func eachParam(s string, f func(name, value string) *mta.Reply) *mta.Reply {
	var seen []string
	for p := range strings.FieldsSeq(s) {
		name, value, _ := strings.Cut(p, "=")
		name = strings.ToUpper(name)
		for _, n := range seen {
			if n == name {
				return mta.NewReply(501, "5.5.4", "parameter %s is given twice", printable(name))
			}
		}
		seen = append(seen, name)
		if r := f(name, value); r != nil {
			return r
		}
	}
	return nil
}

// parseMailParams reads what follows the reverse-path.
func parseMailParams(s string, o offers) (mailParams, *mta.Reply) {
	p := mailParams{size: -1}
	reply := eachParam(s, func(name, value string) *mta.Reply {
		ok := true
		switch {
		case name == "SIZE":
			p.size, ok = parseSize(value)
		case name == "BODY" && o.eightBit:
			p.Body = strings.ToUpper(value)
			ok = p.Body == "7BIT" || p.Body == "8BITMIME"
		case name == "SMTPUTF8" && o.utf8:
			p.SMTPUTF8, ok = true, value == ""
		case name == "REQUIRETLS" && o.requireTLS:
			p.RequireTLS, ok = true, value == ""
		case name == "RET" && o.dsn:
			p.Ret = strings.ToUpper(value)
			ok = p.Ret == "FULL" || p.Ret == "HDRS"
		case name == "ENVID" && o.dsn:
			var err error
			p.EnvID, err = decodeXtext(value)
			ok = err == nil && p.EnvID != "" && len(p.EnvID) <= 100 && isASCII(p.EnvID) // RFC 3461, 4.4
		default:
			return unknownParam(name)
		}
		if !ok {
			return badParam(name)
		}
		return nil
	})
	return p, reply
}

// parseRcptParams reads what follows the forward-path.
func parseRcptParams(s string, o offers, smtputf8 bool) (rcptParams, *mta.Reply) {
	var p rcptParams
	reply := eachParam(s, func(name, value string) *mta.Reply {
		var err error
		switch {
		case name == "NOTIFY" && o.dsn:
			p.notify, err = parseNotify(value)
		case name == "ORCPT" && o.dsn:
			p.orcpt, err = parseORcpt(value, smtputf8)
		default:
			return unknownParam(name)
		}
		if err != nil {
			return badParam(name)
		}
		return nil
	})
	return p, reply
}

// parseSize reads up to 20 digits (RFC 1870, 6.1); more than an int64 holds is as large as one can be.
func parseSize(s string) (int64, bool) {
	if s == "" || len(s) > 20 || strings.Trim(s, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 1<<63 - 1, true
	}
	return n, true
}

var notifyNames = map[string]mta.Notify{
	"NEVER": mta.NotifyNever, "SUCCESS": mta.NotifySuccess, "FAILURE": mta.NotifyFailure, "DELAY": mta.NotifyDelay,
}

// parseNotify reads NOTIFY (RFC 3461, 4.1): NEVER alone, or a list of the others.
func parseNotify(s string) (mta.Notify, error) {
	var set mta.Notify
	for name := range strings.SplitSeq(strings.ToUpper(s), ",") {
		n, ok := notifyNames[name]
		if !ok {
			return 0, errors.New("unknown condition")
		}
		set |= n
	}
	if set&mta.NotifyNever != 0 && set != mta.NotifyNever {
		return 0, errors.New("NEVER excludes the others")
	}
	return set, nil
}

// parseORcpt reads ORCPT (RFC 3461, 4.2; RFC 6533, 3) with an address type of any name, and decodes the address.
func parseORcpt(s string, smtputf8 bool) (string, error) {
	typ, addr, ok := strings.Cut(s, ";")
	if !ok || typ == "" || addr == "" || len(s) > 500 { // RFC 3461, 4.2: at most 500
		return "", errors.New("want type;address")
	}
	if strings.Trim(strings.ToLower(typ), "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		return "", errors.New("address type is not an atom")
	}
	decode := decodeXtext
	if strings.EqualFold(typ, "utf-8") {
		decode = decodeUTF8Xtext
		if !smtputf8 && !isASCII(addr) {
			return "", errors.New("bare UTF-8 without SMTPUTF8")
		}
	}
	addr, err := decode(addr)
	if err != nil {
		return "", err
	}
	return typ + ";" + addr, nil
}

// decodeXtext reads xtext (RFC 3461, 4). What it stands for should be ASCII, but Postfix writes an address of RFC 6531
// this way in octets of UTF-8, and to refuse that would be to refuse real mail.
func decodeXtext(s string) (string, error) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c == '+':
			if i+2 >= len(s) || !isUpperHex(s[i+1]) || !isUpperHex(s[i+2]) {
				return "", errors.New("xtext: + wants two hexadecimal digits")
			}
			n, _ := strconv.ParseUint(s[i+1:i+3], 16, 8) // two digits, as just seen
			c = byte(n)
			i += 2
		case c <= ' ' || c > '~':
			return "", errors.New("xtext: octet must be encoded")
		}
		b.WriteByte(c)
	}
	if !utf8.ValidString(b.String()) || !isPrintableText(b.String()) {
		return "", errors.New("xtext: not printable text")
	}
	return b.String(), nil
}

func isUpperHex(c byte) bool { return c >= '0' && c <= '9' || c >= 'A' && c <= 'F' }

// decodeUTF8Xtext reads utf-8-addr-xtext and utf-8-addr-unitext (RFC 6533, 3): \x{HEX} stands for a character.
func decodeUTF8Xtext(s string) (string, error) {
	if !utf8.ValidString(s) {
		return "", errors.New("utf-8 address: not UTF-8")
	}
	var b strings.Builder
	for s != "" {
		rest, ok := strings.CutPrefix(s, `\x{`)
		if !ok {
			r, n := utf8.DecodeRuneInString(s)
			if r <= ' ' || r == '\\' || r == '+' || r == '=' || r == 0x7f {
				return "", errors.New("utf-8 address: character must be encoded")
			}
			b.WriteRune(r)
			s = s[n:]
			continue
		}
		hex, after, ok := strings.Cut(rest, "}")
		n, err := strconv.ParseUint(hex, 16, 32)
		if !ok || err != nil || !utf8.ValidRune(rune(n)) || n > utf8.MaxRune {
			return "", errors.New(`utf-8 address: bad \x{…}`)
		}
		b.WriteRune(rune(n))
		s = after
	}
	if !isPrintableText(b.String()) {
		return "", errors.New("utf-8 address: control character")
	}
	return b.String(), nil
}

// isPrintableText reports that s has no control characters, so that it can't end a line wherever it is written.
func isPrintableText(s string) bool {
	for _, r := range s {
		if r < ' ' || r >= 0x7f && r < 0xa0 || r == 0x2028 || r == 0x2029 {
			return false
		}
	}
	return true
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

// printable makes what a client sent fit for a reply: short and without anything but printable ASCII.
func printable(s string) string {
	s = s[:min(len(s), 40)]
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s)
}
