// Package dnstest serves DNS zones from a map, for tests: over real UDP and TCP sockets of 127.0.0.1, and in memory
// for synctest bubbles. It answers as a recursive resolver does, aliases chased, with the faults that real ones have.
package dnstest

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/miekg/dns"
)

// Zones maps a name, without its last dot, to its records: "A 192.0.2.1", "300 MX 10 mx.example.org." (a TTL may stand
// first; 60 without). These words stand for a fault of the whole name instead:
//
//	SERVFAIL, REFUSED   that code
//	FORMERR             that code to every question with EDNS
//	TIMEOUT             no answer
//	TRUNCATE            over UDP an empty answer with TC set; over TCP the rest of the list
//	UNCHASED            an alias is not followed for the client
//	AUTHENTIC           the AD bit is set
//	STRAY               before each answer over UDP comes one to another question, and garbage
//
// A name that is not in the map is NXDOMAIN, unless a longer name ends in it.
type Zones map[string][]string

// Server answers from its zones until the test ends.
type Server struct {
	mu      sync.Mutex
	zones   Zones
	asked   map[string]int
	network map[string]int
	addr    string
}

// NewMemory makes a Server without sockets: only Exchange reaches it.
func NewMemory(z Zones) *Server {
	s := &Server{zones: Zones{}, asked: map[string]int{}, network: map[string]int{}}
	for name, rrs := range z {
		s.zones[key(name)] = rrs
	}
	return s
}

// New starts a Server on a free port.
func New(t testing.TB, z Zones) *Server {
	t.Helper()
	s := NewMemory(z)
	tcp, udp := listen(t)
	s.addr = tcp.Addr().String()
	for _, srv := range []*dns.Server{{Listener: tcp, Handler: s}, {PacketConn: udp, Handler: s}} {
		up, down := make(chan struct{}), make(chan struct{})
		srv.NotifyStartedFunc = func() { close(up) }
		go func() {
			defer close(down)
			srv.ActivateAndServe() // its error is that it was shut down
		}()
		<-up
		t.Cleanup(func() { srv.Shutdown(); <-down })
	}
	return s
}

// listen finds a port that is free for both protocols.
func listen(t testing.TB) (net.Listener, net.PacketConn) {
	t.Helper()
	for range 20 {
		tcp, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		udp, err := net.ListenPacket("udp", tcp.Addr().String())
		if err == nil {
			return tcp, udp
		}
		tcp.Close()
	}
	t.Fatal("no port is free for UDP and TCP")
	return nil, nil
}

// Addr is where the server listens.
func (s *Server) Addr() string { return s.addr }

// Set replaces what a name holds; nothing removes it.
func (s *Server) Set(name string, rrs ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(rrs) == 0 {
		delete(s.zones, key(name))
		return
	}
	s.zones[key(name)] = rrs
}

// Asked is how many questions came for a name and a type such as "MX".
func (s *Server) Asked(name, qtype string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked[key(name)+" "+qtype]
}

// Over is how many questions came over "udp" or "tcp".
func (s *Server) Over(network string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.network[network]
}

// Exchange answers without a socket: it is a dnsx.Exchange.
func (s *Server) Exchange(ctx context.Context, m *dns.Msg, network, _ string) (*dns.Msg, error) {
	r := s.answer(m, network)
	if r == nil {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return r, nil
}

// ServeDNS implements dns.Handler.
func (s *Server) ServeDNS(w dns.ResponseWriter, m *dns.Msg) {
	r := s.answer(m, w.LocalAddr().Network())
	if r == nil {
		return
	}
	if w.LocalAddr().Network() == "udp" && s.has(m.Question[0].Name, "STRAY") {
		stray := new(dns.Msg).SetReply(m)
		stray.Id++
		w.WriteMsg(stray)
		w.Write([]byte("garbage"))
	}
	w.WriteMsg(r)
}

func (s *Server) has(name, word string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return has(s.zones[key(name)], word)
}

// answer is nil where no answer comes.
func (s *Server) answer(m *dns.Msg, network string) *dns.Msg {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := m.Question[0]
	s.asked[key(q.Name)+" "+dns.TypeToString[q.Qtype]]++
	s.network[network]++
	r := new(dns.Msg).SetReply(m)
	r.RecursionAvailable = true
	list := s.zones[key(q.Name)]
	switch {
	case has(list, "TIMEOUT"):
		return nil
	case has(list, "SERVFAIL"):
		r.Rcode = dns.RcodeServerFailure
		return r
	case has(list, "REFUSED"):
		r.Rcode = dns.RcodeRefused
		return r
	case has(list, "FORMERR") && m.IsEdns0() != nil:
		r.Rcode = dns.RcodeFormatError
		return r
	case has(list, "TRUNCATE") && network == "udp":
		r.Truncated = true
		return r
	}
	r.AuthenticatedData = has(list, "AUTHENTIC")
	s.fill(r, q.Name, q.Qtype)
	return r
}

// fill writes the answer section, aliases followed, and the SOA where there is none.
func (s *Server) fill(r *dns.Msg, name string, qtype uint16) {
	for range 10 {
		list, ok := s.zones[key(name)]
		if !ok && !s.above(name) {
			r.Rcode = dns.RcodeNameError
			break
		}
		alias := ""
		for _, rr := range records(name, list) {
			if c, ok := rr.(*dns.CNAME); ok && qtype != dns.TypeCNAME {
				alias = c.Target
			} else if rr.Header().Rrtype != qtype {
				continue
			}
			r.Answer = append(r.Answer, rr)
		}
		if alias == "" {
			break
		}
		if has(list, "UNCHASED") {
			return
		}
		name = alias
	}
	if r.Rcode == dns.RcodeNameError || len(r.Answer) == 0 || r.Answer[len(r.Answer)-1].Header().Rrtype != qtype {
		r.Ns = records(".", []string{"30 SOA ns.test. hostmaster.test. 1 3600 600 86400 30"})
	}
}

// above reports a name that has others below it.
func (s *Server) above(name string) bool {
	for n := range s.zones {
		if strings.HasSuffix(n, "."+key(name)) {
			return true
		}
	}
	return false
}

func key(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }

func has(list []string, word string) bool {
	for _, w := range list {
		if w == word {
			return true
		}
	}
	return false
}

// records reads the lines of a name that are records. A mistake in a test's own zone is a panic.
func records(name string, list []string) []dns.RR {
	var rrs []dns.RR
	for _, l := range list {
		if !strings.Contains(l, " ") {
			continue
		}
		ttl := "60 "
		if l[0] >= '0' && l[0] <= '9' {
			ttl = ""
		}
		rr, err := dns.NewRR(". " + ttl + l)
		if err != nil {
			panic(fmt.Sprintf("dnstest: %s: %v", name, err))
		}
		rr.Header().Name = dns.Fqdn(name)
		rrs = append(rrs, rr)
	}
	return rrs
}
