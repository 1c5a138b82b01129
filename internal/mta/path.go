package mta

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// maxLocal is the most octets that we take in a local part. RFC 5321, 4.5.3.1.1 says 64, but addresses that mailing
// lists and forwarders make are longer and real.
const maxLocal = 254

// Path is a reverse-path or forward-path (RFC 5321, 4.1.2; RFC 6531, 3.3). The zero Path is the null reverse-path.
// A Path that ParsePath returned is safe to write back into a command or a header by String.
type Path struct {
	Local  string // unquoted
	Domain string // as the client wrote it: either form of an IDN, any case; empty only for "postmaster" alone
}

// ParsePath reads a path, with or without angle brackets. A source route is read over (RFC 5321, C). Quoted local
// parts keep what they hold but control characters are refused, so nothing in a Path can end a line or a command.
func ParsePath(s string) (Path, error) {
	if rest, ok := strings.CutPrefix(s, "<"); ok {
		rest, ok = strings.CutSuffix(rest, ">")
		if !ok {
			return Path{}, fmt.Errorf("path %q: no closing bracket", s)
		}
		s = rest
	}
	if s == "" {
		return Path{}, nil
	}
	if strings.HasPrefix(s, "@") { // A-d-l
		i := strings.IndexByte(s, ':')
		if i < 0 {
			return Path{}, fmt.Errorf("path %q: source route without a colon", s)
		}
		s = s[i+1:]
	}
	local, rest, err := cutLocal(s)
	if err != nil {
		return Path{}, fmt.Errorf("path %q: %w", s, err)
	}
	if rest == "" && strings.EqualFold(local, "postmaster") {
		return Path{Local: local}, nil // RFC 5321, 4.1.1.3
	}
	domain, ok := strings.CutPrefix(rest, "@")
	if !ok {
		return Path{}, fmt.Errorf("path %q: no domain", s)
	}
	return MakePath(local, domain)
}

// MakePath joins an unquoted local part and a domain, or says what is wrong with them.
func MakePath(local, domain string) (Path, error) {
	if err := checkLocal(local); err != nil {
		return Path{}, err
	}
	if strings.HasPrefix(domain, "[") {
		if _, ok := AddressLiteral(domain); !ok {
			return Path{}, fmt.Errorf("address literal %q is not one", domain)
		}
		return Path{Local: local, Domain: domain}, nil
	}
	if _, err := Domain(domain); err != nil {
		return Path{}, err
	}
	return Path{Local: local, Domain: domain}, nil
}

// cutLocal splits off the local part and unquotes it.
func cutLocal(s string) (local, rest string, err error) {
	if !strings.HasPrefix(s, `"`) {
		i := strings.IndexByte(s, '@')
		if i < 0 {
			i = len(s)
		}
		if !isDotString(s[:i]) {
			return "", "", fmt.Errorf("local part %q is not a dot-string", s[:i])
		}
		return s[:i], s[i:], nil
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '"':
			return b.String(), s[i+1:], nil
		case '\\':
			i++
			if i == len(s) {
				return "", "", errors.New("quoted local part does not end")
			}
		}
		b.WriteByte(s[i])
	}
	return "", "", errors.New("quoted local part does not end")
}

func checkLocal(l string) error {
	if l == "" {
		return errors.New("local part is empty")
	}
	if len(l) > maxLocal {
		return fmt.Errorf("local part is longer than %d octets", maxLocal)
	}
	if !utf8.ValidString(l) {
		return errors.New("local part is not UTF-8")
	}
	for _, r := range l {
		if r < 0x20 || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return fmt.Errorf("local part has the control character %U", r)
		}
	}
	return nil
}

// isDotString tells whether a local part can stand without quotes. Dots at odd places are taken: some networks
// issued such addresses, and whether one exists is the primary's to say.
func isDotString(s string) bool {
	if s == "" {
		return false
	}
	for i := range len(s) {
		switch c := s[i]; {
		case c <= ' ' || c == 0x7f:
			return false
		case strings.IndexByte(`()<>[]:;@\,"`, c) >= 0:
			return false
		}
	}
	return true
}

// String is the path without angle brackets, quoted where it must be; the null path gives "".
func (p Path) String() string {
	local := p.Local
	if local != "" && !isDotString(local) {
		local = `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(local) + `"`
	}
	if p.Domain == "" {
		return local
	}
	return local + "@" + p.Domain
}

// IsNull reports the null reverse-path.
func (p Path) IsNull() bool { return p == Path{} }

// IsASCII reports whether the path can be sent without SMTPUTF8.
func (p Path) IsASCII() bool { return isASCII(p.Local) && isASCII(p.Domain) }

// IsPostmaster reports <postmaster> alone or at any domain (RFC 5321, 4.5.1).
func (p Path) IsPostmaster() bool { return strings.EqualFold(p.Local, "postmaster") }

// DomainKey is the domain in the form of Domain; empty for an address literal, a bare postmaster and the null path.
func (p Path) DomainKey() string {
	d, err := Domain(p.Domain)
	if err != nil {
		return ""
	}
	return d
}

// MarshalText implements encoding.TextMarshaler.
func (p Path) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (p *Path) UnmarshalText(b []byte) error {
	v, err := ParsePath(string(b))
	if err != nil {
		return err
	}
	*p = v
	return nil
}
