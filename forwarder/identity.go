package forwarder

import (
	"fmt"
	"net"
	"net/netip"
	"time"

	"understudy/internal/mta"
	"understudy/internal/smtpc"
)

// interfacesFor is how long the addresses of this host are taken for granted.
const interfacesFor = time.Minute

// road is how one set of primaries is spoken to.
type road struct {
	f      *Forwarder
	tiers  [][]mta.Primary
	dom    Domain          // settings of its domains
	tls    smtpc.TLSPolicy // set before the first session
	domain string          // the first of its domains; the only one where they can't share
}

// identity tells whom a delivery's session speaks for: the key that it shares with others of the same client, and the
// client; none where the primary is not told.
func (r *road) identity(env *mta.Envelope) (key string, client *mta.Peer) {
	if r.dom.ClientIdentity == "headers" || !env.Peer.Addr.IsValid() {
		return "", nil
	}
	if !r.proxies() && r.alike() {
		return "", nil
	}
	p := &env.Peer
	if !r.conveyable(p) {
		return "", nil
	}
	return fmt.Sprintf("%s %s %s %t", p.Addr.Addr(), p.Name, p.Helo, p.Proto == "SMTP"), p
}

func (r *road) proxies() bool { return r.dom.ClientIdentity == "proxy_v2" }

// alike reports that every primary of the route is known not to grant XCLIENT.
func (r *road) alike() bool {
	for _, tier := range r.tiers {
		for _, p := range tier {
			if !r.f.host(p.String()).alike() {
				return false
			}
		}
	}
	return true
}

// conveyable reports that the primaries may be told of a client: none of ours and none of theirs, whom they might trust.
func (r *road) conveyable(p *mta.Peer) bool {
	a := p.Addr.Addr().Unmap()
	if a == p.Local.Addr().Unmap() || r.f.isOurs(a) {
		return false
	}
	for _, tier := range r.tiers {
		for _, x := range tier {
			if x.Host == a.String() {
				return false
			}
		}
	}
	return smtpc.Conveyable(a) || r.f.config().AllowPrivateClients
}

// isOurs reports an address of this host.
func (f *Forwarder) isOurs(a netip.Addr) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if time.Since(f.oursAt) > interfacesFor {
		f.ours, f.oursAt = interfaces(), time.Now()
	}
	return f.ours[a]
}

func interfaces() map[netip.Addr]bool {
	ours := make(map[netip.Addr]bool)
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return ours // what is private or loopback is kept back anyway
	}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			ours[p.Addr().Unmap()] = true
		}
	}
	return ours
}
