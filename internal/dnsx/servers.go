package dnsx

import (
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	recheck = 5 * time.Second  // how often /etc/resolv.conf is looked at
	penalty = 30 * time.Second // how long a resolver that gave no answer is asked last
	silence = time.Minute      // how long no question must have been settled until all resolvers are silent …

	silentNames = 5 // … about so many names
)

// servers is the list of resolvers, those that answer first.
type servers struct {
	file string // read when the configuration names none

	mu      sync.Mutex
	list    []netip.AddrPort
	checked time.Time
	changed time.Time // mtime of file when it was read
	bad     map[netip.AddrPort]time.Time
	// unsettled are names whose questions nobody settled since the last one that somebody did, and when each was asked
	// for first; not more than are needed.
	unsettled map[string]time.Time
}

func newServers(configured []string) (*servers, error) {
	s := &servers{file: "/etc/resolv.conf", bad: make(map[netip.AddrPort]time.Time), unsettled: make(map[string]time.Time)}
	for _, c := range configured {
		a, err := parseServer(c)
		if err != nil {
			return nil, err
		}
		s.list = append(s.list, a)
	}
	if len(s.list) > 0 {
		s.file = ""
	}
	return s, nil
}

// order lists the resolvers to be asked, those that failed lately last.
func (s *servers) order(now time.Time) []netip.AddrPort {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.file != "" && now.Sub(s.checked) >= recheck {
		s.checked = now
		s.read()
	}
	good := make([]netip.AddrPort, 0, len(s.list))
	var bad []netip.AddrPort
	for _, a := range s.list {
		if now.Before(s.bad[a]) {
			bad = append(bad, a)
			continue
		}
		good = append(good, a)
	}
	return append(good, bad...)
}

// read takes the name servers of the file. One that can't be read leaves the old list; none at all is this host, as
// the C library does it.
func (s *servers) read() {
	st, err := os.Stat(s.file)
	if err == nil && st.ModTime().Equal(s.changed) && len(s.list) > 0 {
		return
	}
	var list []netip.AddrPort
	if conf, err := dns.ClientConfigFromFile(s.file); err == nil {
		for _, n := range conf.Servers {
			if a, err := netip.ParseAddr(n); err == nil {
				list = append(list, netip.AddrPortFrom(a, 53))
			}
		}
	}
	if len(list) == 0 && len(s.list) > 0 {
		return
	}
	if len(list) == 0 {
		list = []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:53")}
	}
	if err == nil {
		s.changed = st.ModTime()
	}
	s.list = slices.Compact(list)
}

// mark remembers whether a resolver answered.
func (s *servers) mark(a netip.AddrPort, ok bool, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if ok {
		delete(s.bad, a)
		return
	}
	s.bad[a] = now.Add(penalty)
}

// settled remembers whether a question had an answer from anybody.
func (s *servers) settled(name string, ok bool, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if ok {
		clear(s.unsettled)
		return
	}
	if _, known := s.unsettled[name]; !known && len(s.unsettled) < silentNames {
		s.unsettled[name] = now
	}
}

// silent tells whether nothing was settled for so long, and that of more names than one domain's trouble concerns.
func (s *servers) silent(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.unsettled) < silentNames {
		return false
	}
	for _, first := range s.unsettled {
		if now.Sub(first) >= silence {
			return true
		}
	}
	return false
}
