package mailauth

import (
	"strings"

	"understudy/internal/mta"
)

// mailboxes gives the domain of each mailbox in an address list (RFC 5322, 3.4), in the form of mta.Domain; "" for a
// mailbox without one. ok tells that the list is as the RFC writes it, or near enough that every reader sees the same
// addresses. If it is not, every domain that a reader might take is in the answer.
func mailboxes(s string) (domains []string, ok bool) {
	p := addresses{ok: true}
	p.read(s)
	if p.ok {
		return p.domains, true
	}
	if len(p.domains) == 1 && p.domains[0] != "" && p.closed { // NAME that should be quoted <ADDRESS>
		return p.domains, false
	}
	return anyDomains(s), false
}

// addresses reads an address list.
type addresses struct {
	domains []string
	ok      bool
	closed  bool // every quote, comment and bracket has its end, and there is no address beside the one that was found

	outside strings.Builder // what stands outside of angle brackets, quoted strings as one letter
	angle   *string         // what stands inside, if there were any
}

func (p *addresses) read(s string) {
	p.closed = true
	for i := 0; i < len(s); {
		switch c := s[i]; c {
		case '(':
			i = p.skip(s, i, commentEnd)
		case '"':
			i = p.skip(s, i, quoteEnd)
			p.outside.WriteByte('q')
		case '<':
			end := angleEnd(s, i)
			if end < 0 {
				p.ok, p.closed = false, false
				return
			}
			if p.angle != nil {
				p.ok, p.closed = false, false
			}
			inner := s[i+1 : end]
			p.angle = &inner
			i = end + 1
		case ',', ';':
			p.mailbox()
			i++
		case ':': // the name of a group ends
			if strings.Contains(p.outside.String(), "@") { // or is it the address that another reader takes?
				p.ok, p.closed = false, false
			}
			p.outside.Reset()
			i++
		default:
			p.outside.WriteByte(c)
			i++
		}
	}
	p.mailbox()
}

// skip goes to behind what begins at i, or to the end of the list.
func (p *addresses) skip(s string, i int, end func(string, int) int) int {
	e := end(s, i)
	if e < 0 {
		p.ok, p.closed = false, false
		return len(s)
	}
	return e + 1
}

// mailbox takes what was read as one mailbox.
func (p *addresses) mailbox() {
	outside := strings.TrimSpace(p.outside.String())
	angle := p.angle
	p.outside.Reset()
	p.angle = nil
	switch {
	case angle != nil:
		if strings.Contains(outside, "@") {
			p.ok = false
		}
		p.address(*angle)
	case outside != "":
		p.address(outside)
	}
}

func (p *addresses) address(a string) {
	if strings.HasPrefix(strings.TrimSpace(a), "@") { // a route
		if _, rest, ok := strings.Cut(a, ":"); ok {
			a = rest
		}
	}
	i := strings.LastIndexByte(a, '@')
	if i < 0 {
		p.ok = false
		p.domains = append(p.domains, "")
		return
	}
	if atOutsideQuotes(a[:i]) { // a@b@c: which of them is the domain?
		p.ok, p.closed = false, false
	}
	d := strings.TrimSpace(stripComments(a[i+1:]))
	if _, literal := mta.AddressLiteral(d); literal {
		p.domains = append(p.domains, "")
		return
	}
	d, err := mta.Domain(strings.Join(strings.Fields(d), ""))
	if err != nil {
		p.ok = false
	}
	p.domains = append(p.domains, d)
}

// atOutsideQuotes reports an @ in a local part that is neither quoted nor in a comment.
func atOutsideQuotes(local string) bool {
	for i := 0; i < len(local); i++ {
		end := i
		switch local[i] {
		case '@':
			return true
		case '"':
			end = quoteEnd(local, i)
		case '(':
			end = commentEnd(local, i)
		}
		if end < 0 {
			return strings.Contains(local[i:], "@")
		}
		i = end
	}
	return false
}

// commentEnd is where the comment that begins at i ends (RFC 5322, 3.2.2), or -1.
func commentEnd(s string, i int) int {
	depth := 0
	for ; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case '(':
			depth++
		case ')':
			if depth--; depth == 0 {
				return i
			}
		}
	}
	return -1
}

// quoteEnd is where the quoted string that begins at i ends (RFC 5322, 3.2.4), or -1.
func quoteEnd(s string, i int) int {
	for i++; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case '"':
			return i
		}
	}
	return -1
}

// angleEnd is where the angle bracket that begins at i is closed, or -1.
func angleEnd(s string, i int) int {
	for i++; i < len(s); i++ {
		switch s[i] {
		case '"':
			if i = quoteEnd(s, i); i < 0 {
				return -1
			}
		case '>':
			return i
		case '<':
			return -1
		}
	}
	return -1
}

// stripComments takes closed comments out.
func stripComments(s string) string {
	for {
		i := strings.IndexByte(s, '(')
		if i < 0 {
			return s
		}
		end := commentEnd(s, i)
		if end < 0 {
			return s
		}
		s = s[:i] + " " + s[end+1:]
	}
}

// anyDomains gives whatever stands behind an @ and can be a domain.
func anyDomains(s string) []string {
	domains := []string{}
	for i := 0; i < len(s); i++ {
		if s[i] != '@' {
			continue
		}
		n := 0
		for _, c := range []byte(s[i+1:]) {
			if c < 0x80 && c != '.' && c != '-' && c != '_' && (c < '0' || c > '9') && (c|0x20 < 'a' || c|0x20 > 'z') {
				break
			}
			n++
		}
		if d, err := mta.Domain(strings.TrimRight(s[i+1:i+1+n], ".")); err == nil {
			domains = append(domains, d)
		}
	}
	return domains
}
