package forwarder

import (
	"cmp"
	"maps"
	"slices"
	"time"
)

// RouteStatus is what a route does now, for people.
type RouteStatus struct {
	Route     string          `json:"route"`
	Domains   []string        `json:"domains"` // that have something to claim
	Primaries []PrimaryStatus `json:"primaries"`
	Sessions  int             `json:"sessions"`
	Limit     int             `json:"limit"`      // of sessions, for now
	Ready     int             `json:"ready"`      // read and waiting for a session
	OnTheWay  int             `json:"on_the_way"` // claimed, and their outcome not stored yet
	LastTaken time.Time       `json:"last_taken,omitzero"`
}

// PrimaryStatus is what the forwarder makes of one primary.
type PrimaryStatus struct {
	Primary  string    `json:"primary"`
	Open     bool      `json:"open"`
	Sessions int       `json:"sessions"`       // of the drain
	Inline   int       `json:"inline"`         // transactions while senders wait, each over a session of its own
	Warm     int       `json:"warm"`           // sessions that wait for such a one
	Until    time.Time `json:"until,omitzero"` // left alone until then
	Failed   string    `json:"failed,omitempty"`
	Breaker  time.Time `json:"breaker,omitzero"`   // open since then: it refuses far too much
	Greylist time.Time `json:"greylists,omitzero"` // it was seen to greylist us
	// TLS counts the sessions by what became of TLS: "tls", "clear", or what failed, in the words of RFC 8460.
	TLS map[string]int64 `json:"tls,omitempty"`
}

// Status lists the routes that have work, sorted by name.
func (f *Forwarder) Status() []RouteStatus {
	f.mu.Lock()
	routes := make([]*route, 0, len(f.active))
	for _, r := range f.active {
		routes = append(routes, r)
	}
	f.mu.Unlock()
	list := make([]RouteStatus, 0, len(routes))
	for _, r := range routes {
		list = append(list, r.status())
	}
	slices.SortFunc(list, func(a, b RouteStatus) int { return cmp.Compare(a.Route, b.Route) })
	return list
}

func (r *route) status() RouteStatus {
	r.mu.Lock()
	s := RouteStatus{
		Route: r.name, Domains: slices.Clone(r.ring), Sessions: len(r.live), Limit: r.ramp.limit, Ready: r.shelf.n, OnTheWay: r.out, LastTaken: r.last,
	}
	var ps []PrimaryStatus
	for _, tier := range r.tiers {
		for _, p := range tier {
			ps = append(ps, PrimaryStatus{Primary: p.String(), Sessions: r.busy[p]})
		}
	}
	r.mu.Unlock()
	for i := range ps {
		r.f.host(ps[i].Primary).tell(&ps[i])
	}
	s.Primaries = ps
	return s
}

// tell fills in what is known of the host itself.
func (h *host) tell(s *PrimaryStatus) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s.Open, s.Until, s.Breaker, s.Greylist, s.TLS = h.open, h.until, h.tripped, h.grey, maps.Clone(h.tls)
	if h.last != nil {
		s.Failed = h.last.Error()
	}
}

// Primaries lists every primary that mail was handed to, or was to be, sorted by name.
func (f *Forwarder) Primaries() []PrimaryStatus {
	sessions := make(map[string]int)
	for _, r := range f.Status() {
		for _, p := range r.Primaries {
			sessions[p.Primary] += p.Sessions
		}
	}
	inline, warm := f.pools.sessions()
	f.mu.Lock()
	hosts := maps.Clone(f.hosts)
	f.mu.Unlock()
	list := make([]PrimaryStatus, 0, len(hosts))
	for _, name := range slices.Sorted(maps.Keys(hosts)) {
		s := PrimaryStatus{Primary: name, Sessions: sessions[name], Inline: inline[name], Warm: warm[name]}
		hosts[name].tell(&s)
		list = append(list, s)
	}
	return list
}

// sessions counts all of them.
func (f *Forwarder) sessions() int {
	n := 0
	for _, s := range f.Status() {
		n += s.Sessions
	}
	return n
}
