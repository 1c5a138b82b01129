package inbound

import (
	"math"
	"net/netip"
	"sync"
	"time"

	"understudy/internal/mta"
)

// gate limits how many connections there are, in all and from one network. It is told the time, and holds one small
// record for each network that has a connection or had one within the last minute.
type gate struct {
	max, perNetwork, perMinute int
	inline                     int // transactions with primaries, per network
	hard                       int // what the process's descriptors allow; the trusted meet this limit too

	mu       sync.Mutex
	open     int
	networks map[netip.Prefix]*network
	swept    time.Time
	known    map[netip.Addr]struct{} // clients that waited for their greeting
}

// network is what the gate knows of a /24 or /64.
type network struct {
	open   int
	inline int     // transactions with primaries
	tokens float64 // new connections that it may still make; refilled by the minute
	at     time.Time
}

// maxKnown bounds the memory of clients that passed the pregreet test; the test costs a forgotten one two seconds.
const maxKnown = 50_000

// newGate makes a gate for a process that may have so many files open: half of them are for clients, and the others
// for the spool, the probes and the deliveries, which clients must not starve.
func newGate(c *Config, files uint64) *gate {
	return &gate{
		max: c.MaxConnections, perNetwork: c.MaxPerNetwork, perMinute: c.MaxPerMinute, inline: c.MaxInlinePerClient, hard: int(min(files/2, math.MaxInt32)),
		networks: map[netip.Prefix]*network{}, known: map[netip.Addr]struct{}{},
	}
}

// networkOf is the network that a client's neighbours share: hosts of one customer mostly have a /24 or a /64.
func networkOf(a netip.Addr) netip.Prefix {
	bits := 64
	if a.Is4() {
		bits = 24
	}
	p, _ := a.WithZone("").Prefix(bits) // can't fail: a is valid and bits fit
	return p
}

// enter takes a place for a client, or says why there is none. A trusted client counts and meets only the hard limit.
func (g *gate) enter(a netip.Addr, trusted bool, now time.Time) (reason string, refusal *mta.Reply) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.open >= g.hard {
		return "files", mta.NewReply(421, "4.3.2", "too many connections, try again later")
	}
	if trusted {
		g.open++
		return "", nil
	}
	g.sweep(now)
	n := g.networks[networkOf(a)]
	if n == nil {
		n = &network{tokens: float64(g.perMinute), at: now}
		g.networks[networkOf(a)] = n
	}
	n.refill(now, g.perMinute)
	switch {
	case n.tokens < 1:
		return "rate", mta.NewReply(421, "4.7.0", "too many new connections from your network, try again in a minute")
	case n.open >= g.perNetwork:
		return "network", mta.NewReply(421, "4.7.0", "too many connections from your network, try again later")
	case g.open >= g.max:
		return "full", mta.NewReply(421, "4.7.0", "too many connections, try again later")
	}
	n.tokens--
	n.open++
	g.open++
	return "", nil
}

// leave gives the place back.
func (g *gate) leave(a netip.Addr, trusted bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.open--
	if n := g.networks[networkOf(a)]; n != nil && !trusted {
		n.open--
	}
}

// enterInline takes one more transaction with a primary for a client that is let in.
func (g *gate) enterInline(a netip.Addr, trusted bool) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	n := g.networks[networkOf(a)]
	if trusted || n == nil {
		return true
	}
	if n.inline >= g.inline {
		return false
	}
	n.inline++
	return true
}

// leaveInline gives it back, before the client leaves.
func (g *gate) leaveInline(a netip.Addr, trusted bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if n := g.networks[networkOf(a)]; n != nil && !trusted {
		n.inline--
	}
}

func (n *network) refill(now time.Time, perMinute int) {
	n.tokens = min(float64(perMinute), n.tokens+now.Sub(n.at).Minutes()*float64(perMinute))
	n.at = now
}

// sweep forgets, once a minute, the networks that have nothing open and all their tokens back.
func (g *gate) sweep(now time.Time) {
	if now.Sub(g.swept) < time.Minute {
		return
	}
	g.swept = now
	for p, n := range g.networks {
		if n.open == 0 && now.Sub(n.at) >= time.Minute {
			delete(g.networks, p)
		}
	}
}

// isKnown tells whether a client has passed the pregreet test before.
func (g *gate) isKnown(a netip.Addr) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	_, ok := g.known[a]
	return ok
}

// know remembers a client that passed; when there are too many, any other is forgotten.
func (g *gate) know(a netip.Addr) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.known) >= maxKnown {
		for other := range g.known {
			delete(g.known, other)
			break
		}
	}
	g.known[a] = struct{}{}
}
