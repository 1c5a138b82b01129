package dnsx

import (
	"strconv"
	"strings"

	"github.com/miekg/dns"
)

// question is the key of the cache. name is absolute, lower case, in presentation format.
type question struct {
	name  string
	qtype uint16
}

func (q question) String() string { return q.name + " " + dns.TypeToString[q.qtype] }

// newQuestion takes a name as other parts write it: dots between labels, any octet but a dot within (SPF macros make
// such names), a dot at the end or not. It reports false for what can't be a name: nothing can have it.
func newQuestion(name string, qtype uint16) (question, bool) {
	name = strings.TrimSuffix(name, ".")
	if name == "" {
		return question{}, false
	}
	if isPlain(name) {
		return question{name: name + ".", qtype: qtype}, true
	}
	var b strings.Builder
	for i := range len(name) {
		c := name[i]
		switch {
		case 'A' <= c && c <= 'Z':
			b.WriteByte(c + 'a' - 'A')
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-', c == '_', c == '.':
			b.WriteByte(c)
		default:
			b.WriteByte('\\')
			s := strconv.Itoa(int(c))
			b.WriteString("000"[len(s):] + s)
		}
	}
	b.WriteByte('.')
	var buf [255]byte
	if _, err := dns.PackDomainName(b.String(), buf[:], 0, nil, false); err != nil {
		return question{}, false
	}
	canonical, _, err := dns.UnpackDomainName(buf[:], 0) // as answers will have it
	return question{name: canonical, qtype: qtype}, err == nil
}

// isPlain reports a name that is in the form of a question's but for the last dot, as nearly all are.
func isPlain(name string) bool {
	const maxName, maxLabel = 253, 63
	if len(name) > maxName {
		return false
	}
	label := 0
	for i := range len(name) {
		switch c := name[i]; {
		case c == '.' && label > 0:
			label = 0
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-', c == '_':
			label++
		default:
			return false
		}
		if label > maxLabel {
			return false
		}
	}
	return label > 0
}

// unescape undoes the presentation format of a character string: \DDD and \X.
func unescape(s string) string {
	if strings.IndexByte(s, '\\') < 0 {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' || i+1 == len(s) {
			b.WriteByte(s[i])
			continue
		}
		if i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 10, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		i++
		b.WriteByte(s[i])
	}
	return b.String()
}
