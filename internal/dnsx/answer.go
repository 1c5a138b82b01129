package dnsx

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// maxAliases is how many CNAMEs a name may lead through: more is a loop or a mistake.
const maxAliases = 8

// errTrouble is an answer that settles nothing; the next resolver may know better.
var errTrouble = errors.New("no usable answer")

// answer is what the DNS says to one question.
type answer struct {
	rrs       []dns.RR      // of the asked type, at the end of the aliases
	alias     string        // where CNAMEs led, if there were any
	ttl       time.Duration // already within the configured bounds
	authentic bool          // validated by a resolver whose word we take
	err       error         // ErrNoName, ErrNoData, or trouble that was remembered for a moment
}

// read makes an answer of a message, or says why it settles nothing. It is pure.
func read(q question, m *dns.Msg) (a answer, more string, err error) {
	if !answers(q, m) {
		return answer{}, "", fmt.Errorf("%w: it is for another question", errTrouble)
	}
	if m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError {
		return answer{}, "", fmt.Errorf("%w: %s", errTrouble, dns.RcodeToString[m.Rcode])
	}
	name, ttl, err := follow(q, m.Answer)
	if err != nil {
		return answer{}, "", err
	}
	a.authentic = m.AuthenticatedData
	if name != q.name {
		a.alias = name
	}
	for _, rr := range m.Answer {
		h := rr.Header()
		if h.Rrtype == q.qtype && strings.EqualFold(h.Name, name) {
			a.rrs = append(a.rrs, rr)
			ttl = min(ttl, seconds(h.Ttl))
		}
	}
	if len(a.rrs) > 0 {
		a.ttl = ttl
		return a, "", nil
	}
	soa, known := negativeTTL(m.Ns)
	a.ttl = min(ttl, soa)
	if m.Rcode == dns.RcodeNameError {
		a.err = ErrNoName
		return a, "", nil
	}
	if a.alias != "" && !known {
		a.ttl = ttl
		return a, a.alias, nil // a server that does not chase aliases leaves it to us
	}
	if !known && len(m.Ns) > 0 {
		return answer{}, "", fmt.Errorf("%w: it is a referral", errTrouble)
	}
	a.err = ErrNoData
	return a, "", nil
}

func answers(q question, m *dns.Msg) bool {
	return m.Response && len(m.Question) == 1 && m.Question[0].Qtype == q.qtype &&
		strings.EqualFold(m.Question[0].Name, q.name)
}

// follow walks from the question through the CNAMEs.
func follow(q question, rrs []dns.RR) (name string, ttl time.Duration, err error) {
	name, ttl = q.name, maxTTL
	for range maxAliases {
		next := ""
		for _, rr := range rrs {
			if c, ok := rr.(*dns.CNAME); ok && strings.EqualFold(c.Hdr.Name, name) {
				next = strings.ToLower(c.Target)
				ttl = min(ttl, seconds(c.Hdr.Ttl))
				break
			}
		}
		if next == "" {
			return name, ttl, nil
		}
		name = next
	}
	return "", 0, fmt.Errorf("%w: more than %d aliases", errTrouble, maxAliases)
}

// maxTTL bounds what a record may say (RFC 2181, 8: the highest bit means 0).
const maxTTL = (1<<31 - 1) * time.Second

func seconds(ttl uint32) time.Duration {
	if ttl > 1<<31-1 {
		return 0
	}
	return time.Duration(ttl) * time.Second
}

// negativeTTL is how long "there is none" holds (RFC 2308, 5), and whether the answer said so at all.
func negativeTTL(ns []dns.RR) (time.Duration, bool) {
	for _, rr := range ns {
		if soa, ok := rr.(*dns.SOA); ok {
			return min(seconds(soa.Hdr.Ttl), seconds(soa.Minttl)), true
		}
	}
	return 0, false
}
