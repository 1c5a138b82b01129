package dnsbl

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Entry is one line of the configuration: a list, the replies that count, and how much they weigh.
type Entry struct {
	List    string  // the list's domain, in lower case
	Pattern Pattern // the zero Pattern takes every reply
	Weight  float64 // below 0: to be listed speaks for a client
}

// maxWeight bounds a weight to what a score can still be read with.
const maxWeight = 1000

// maxListName leaves room for the 64 octets of a reversed IPv6 address in a name of 255 (RFC 1035, 2.3.4).
const maxListName = 180

// Pattern says which replies count: for each octet the values that it may have.
type Pattern struct {
	text   string
	octets [4][]span
}

type span struct{ from, to byte }

// ParseEntry reads "LIST", "LIST=PATTERN", "LIST*WEIGHT" or "LIST=PATTERN*WEIGHT" as postscreen does. The weight is 1 if
// none is given.
func ParseEntry(s string) (Entry, error) {
	e := Entry{Weight: 1}
	rest, weight, weighed := strings.Cut(s, "*")
	if weighed {
		w, err := parseWeight(weight)
		if err != nil {
			return Entry{}, fmt.Errorf("%q: %w", s, err)
		}
		e.Weight = w
	}
	list, pattern, filtered := strings.Cut(rest, "=")
	if filtered {
		p, err := ParsePattern(pattern)
		if err != nil {
			return Entry{}, fmt.Errorf("%q: %w", s, err)
		}
		e.Pattern = p
	}
	var err error
	if e.List, err = parseList(list); err != nil {
		return Entry{}, fmt.Errorf("%q: %w", s, err)
	}
	return e, nil
}

// String is what ParseEntry reads.
func (e Entry) String() string {
	s := e.List
	if e.Pattern.text != "" {
		s += "=" + e.Pattern.text
	}
	if e.Weight != 1 {
		s += "*" + strconv.FormatFloat(e.Weight, 'f', -1, 64)
	}
	return s
}

func parseWeight(s string) (float64, error) {
	digits := strings.TrimPrefix(strings.TrimPrefix(s, "-"), "+")
	w, err := strconv.ParseFloat(s, 64)
	if err != nil || digits == "" || strings.Trim(digits, "0123456789.") != "" {
		return 0, fmt.Errorf("the weight %q is not a number such as 2 or -1.5", s)
	}
	if w < -maxWeight || w > maxWeight || w == 0 {
		return 0, fmt.Errorf("the weight %s is not between -%d and %d, or is 0", s, maxWeight, maxWeight)
	}
	return w, nil
}

func parseList(s string) (string, error) {
	list := strings.ToLower(strings.TrimSuffix(s, "."))
	if list == "" {
		return "", fmt.Errorf("no list is named")
	}
	if len(list) > maxListName {
		return "", fmt.Errorf("the name of the list is longer than %d octets", maxListName)
	}
	if _, err := netip.ParseAddr(list); err == nil {
		return "", fmt.Errorf("%q is an address: write the domain of a list", s)
	}
	if !strings.Contains(list, ".") {
		return "", fmt.Errorf("%q is not a full name: write the domain of a list", s)
	}
	for label := range strings.SplitSeq(list, ".") {
		if label == "" || len(label) > 63 || strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			return "", fmt.Errorf("%q is not a domain", s)
		}
	}
	return list, nil
}

// ParsePattern reads four octets with dots between them. Each is a number, or brackets around numbers and ranges:
// "127.0.[0..255].[2;3;9..11]".
func ParsePattern(s string) (Pattern, error) {
	p := Pattern{text: s}
	rest := s
	for i := range p.octets {
		if i > 0 {
			var ok bool
			if rest, ok = strings.CutPrefix(rest, "."); !ok {
				return Pattern{}, fmt.Errorf("the pattern %q must have four octets with dots between them, such as 127.0.0.[2..11]", s)
			}
		}
		var err error
		if p.octets[i], rest, err = cutOctet(rest); err != nil {
			return Pattern{}, fmt.Errorf("the pattern %q: %w", s, err)
		}
	}
	if rest != "" {
		return Pattern{}, fmt.Errorf("the pattern %q has %q after its fourth octet", s, rest)
	}
	if !p.Match(netip.AddrFrom4([4]byte{127, p.octets[1][0].from, p.octets[2][0].from, p.octets[3][0].from})) {
		return Pattern{}, fmt.Errorf("the pattern %q can never match: lists answer with 127.x.x.x", s)
	}
	return p, nil
}

// cutOctet reads one octet's values off the front.
func cutOctet(s string) ([]span, string, error) {
	inner, ok := strings.CutPrefix(s, "[")
	if !ok {
		end := strings.IndexByte(s, '.')
		if end < 0 {
			end = len(s)
		}
		n, err := parseOctet(s[:end])
		return []span{{n, n}}, s[end:], err
	}
	inner, rest, ok := strings.Cut(inner, "]")
	if !ok {
		return nil, "", fmt.Errorf("a [ has no ]")
	}
	var spans []span
	for item := range strings.SplitSeq(inner, ";") {
		from, to, isRange := strings.Cut(item, "..")
		if !isRange {
			to = from
		}
		a, err := parseOctet(from)
		if err != nil {
			return nil, "", err
		}
		b, err := parseOctet(to)
		if err != nil {
			return nil, "", err
		}
		if a > b {
			return nil, "", fmt.Errorf("the range %s ends before it begins", item)
		}
		spans = append(spans, span{a, b})
	}
	return spans, rest, nil
}

func parseOctet(s string) (byte, error) {
	n, err := strconv.ParseUint(s, 10, 8)
	if err != nil || s != strconv.FormatUint(n, 10) {
		return 0, fmt.Errorf("%q is not a number from 0 to 255", s)
	}
	return byte(n), nil
}

// Match tells whether a reply counts.
func (p Pattern) Match(a netip.Addr) bool {
	if p.text == "" {
		return true
	}
	if !a.Is4() {
		return false
	}
	for i, octet := range a.As4() {
		within := false
		for _, s := range p.octets[i] {
			within = within || s.from <= octet && octet <= s.to
		}
		if !within {
			return false
		}
	}
	return true
}

// Name is the name under which a list has an address: its octets or nibbles in reverse (RFC 5782, 2.1 and 2.4).
func Name(a netip.Addr, list string) string {
	a = a.Unmap()
	if a.Is4() {
		return reverse4(a.As4()) + list
	}
	return nibbles(a.As16()) + list
}

func reverse4(b [4]byte) string {
	var s strings.Builder
	for i := range b {
		s.WriteString(strconv.Itoa(int(b[3-i])))
		s.WriteByte('.')
	}
	return s.String()
}

func nibbles(b [16]byte) string {
	const digits = "0123456789abcdef"
	s := make([]byte, 0, 64)
	for i := range b {
		s = append(s, digits[b[15-i]&0xf], '.', digits[b[15-i]>>4], '.')
	}
	return string(s)
}
