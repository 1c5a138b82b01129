package dnsx

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"time"

	"github.com/miekg/dns"

	"understudy/internal/mta"
)

// Config says whom to ask.
type Config struct {
	// Recursive resolvers, as ADDRESS or ADDRESS:PORT. None: those of /etc/resolv.conf, which is read again when it
	// changes. DNS lists and DNSSEC want a resolver of your own, on this host or beside it.
	Resolvers []string `yaml:"resolvers"`
	// How long to wait for one answer of one resolver.
	Timeout time.Duration `yaml:"timeout"`
	// How often each resolver is asked before a lookup fails.
	Tries int `yaml:"tries"`
	// Believe a resolver that is not on this host when it says that it has validated an answer (the AD bit). Only if
	// nobody can tamper with the way to it.
	TrustAD bool `yaml:"trust_ad"`
	// An answer is kept for its TTL, but at least and at most so long.
	MinTTL time.Duration `yaml:"min_ttl"`
	MaxTTL time.Duration `yaml:"max_ttl"`
	// "There is none" is kept at most so long.
	MaxNegativeTTL time.Duration `yaml:"max_negative_ttl"`
	// At most so many answers are kept.
	CacheSize int `yaml:"cache_size"`

	// Exchange stands in for the network, in tests.
	Exchange Exchange `yaml:"-"`
}

// Exchange sends one question to a server over "udp" or "tcp" and returns its answer.
type Exchange func(ctx context.Context, m *dns.Msg, network, server string) (*dns.Msg, error)

// DefaultConfig is what an absent section means.
func DefaultConfig() Config {
	return Config{
		Timeout:        2 * time.Second,
		Tries:          2,
		MinTTL:         time.Second,
		MaxTTL:         24 * time.Hour,
		MaxNegativeTTL: 15 * time.Minute,
		CacheSize:      20_000,
	}
}

// Validate reports every fault at once.
func (c *Config) Validate() []mta.Fault {
	var faults []mta.Fault
	for i, s := range c.Resolvers {
		if _, err := parseServer(s); err != nil {
			faults = append(faults, mta.NewFault(fmt.Sprintf("resolvers[%d]", i), "%v", err))
		}
	}
	if c.Timeout <= 0 {
		faults = append(faults, mta.NewFault("timeout", "must be above 0, for example 2s"))
	}
	if c.Tries < 1 || c.Tries > 10 {
		faults = append(faults, mta.NewFault("tries", "must be 1 to 10"))
	}
	if c.MinTTL < 0 || c.MaxTTL < c.MinTTL {
		faults = append(faults, mta.NewFault("max_ttl", "must be at least min_ttl, and neither below 0"))
	}
	if c.MaxNegativeTTL < 0 {
		faults = append(faults, mta.NewFault("max_negative_ttl", "must not be below 0"))
	}
	if c.CacheSize < 1 {
		faults = append(faults, mta.NewFault("cache_size", "must be at least 1"))
	}
	return faults
}

// parseServer reads ADDRESS or ADDRESS:PORT. A name is refused: who would resolve it?
func parseServer(s string) (netip.AddrPort, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.AddrPortFrom(a, 53), nil
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("%q is not ADDRESS or ADDRESS:PORT", s)
	}
	a, err := netip.ParseAddr(host)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("%q: %q is not an IP address", s, host)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return netip.AddrPort{}, fmt.Errorf("%q: port must be 1 to 65535", s)
	}
	return netip.AddrPortFrom(a, uint16(n)), nil
}
