package healthprobe

import (
	"net/netip"
	"slices"
	"testing"
)

func TestWeAreKnownByNamesAndAddresses(t *testing.T) {
	cfg := DefaultConfig()
	cfg.Self = []string{"Backup.example.net.", "198.51.100.20", "::ffff:198.51.100.21"}
	p := prepare(t, cfg, nil, Deps{Own: interfaceAddrs})
	me := p.self()
	for _, name := range []string{"mx2.example.org", "backup.example.net"} {
		if !slices.Contains(me.names, name) {
			t.Errorf("%s is not among %q", name, me.names)
		}
	}
	for _, a := range []string{"198.51.100.20", "198.51.100.21", "127.0.0.1"} {
		if !slices.Contains(me.addrs, netip.MustParseAddr(a)) {
			t.Errorf("%s is not among %v", a, me.addrs)
		}
	}
}
