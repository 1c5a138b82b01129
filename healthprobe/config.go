package healthprobe

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"understudy/internal/mta"
	"understudy/internal/smtpc"
)

// Config says how primaries are watched.
type Config struct {
	// Time between two probes of a primary that is up. Mail that it takes counts as a probe.
	Every time.Duration `yaml:"every"`
	// Time between two probes of a primary that is down, and of one that just failed for the first time.
	EveryDown time.Duration `yaml:"every_down"`
	// The same once it has been down for long_down.
	EveryLongDown time.Duration `yaml:"every_long_down"`
	LongDown      time.Duration `yaml:"long_down"`
	// Time between two probes of a primary that answers but has refused for more than a minute. It counts our
	// connections, perhaps.
	EveryRefusing time.Duration `yaml:"every_refusing"`
	// A first success of a primary that is down is confirmed after this time.
	Confirm time.Duration `yaml:"confirm"`
	// How many probes in a row must fail before a primary that is up is down, and how many must succeed before it is up.
	Fall int `yaml:"fall"`
	Rise int `yaml:"rise"`
	// A primary that fell so often within this time is flapping: it must succeed longer before it is up again, up to
	// flap_rise probes in a row.
	FlapFalls  int           `yaml:"flap_falls"`
	FlapWindow time.Duration `yaml:"flap_window"`
	FlapRise   int           `yaml:"flap_rise"`
	// How far a probe goes: connect, banner, ehlo, starttls, mail, or rcpt (to postmaster, and no message is sent).
	Depth string `yaml:"depth"`
	// The longest that a connection may take, and the longest that a whole probe may.
	DialTimeout time.Duration `yaml:"dial_timeout"`
	Timeout     time.Duration `yaml:"timeout"`
	// At most so many probes, and so many lookups of routes, at the same time.
	MaxProbes  int `yaml:"max_probes"`
	MaxLookups int `yaml:"max_lookups"`
	// Routes that come from the DNS are looked up again when their TTL ends, but not before and not after these.
	RouteMinTTL time.Duration `yaml:"route_min_ttl"`
	RouteMaxTTL time.Duration `yaml:"route_max_ttl"`
	// The port of primaries that were found in the DNS. Anything but 25 is for tests.
	MXPort uint16 `yaml:"mx_port"`
	// Names and addresses under which this host appears in MX records, besides its hostname and the addresses of its
	// interfaces: the public address, where this host is behind NAT.
	Self []string `yaml:"self"`

	// Hostname is our own name.
	Hostname string `yaml:"-"`
}

// Domain is what the config says of one mail domain.
type Domain struct {
	// The domain's own mail servers, best first, as HOST or HOST:PORT; names are looked up in the DNS, not in /etc/hosts.
	// None: they are found in the DNS, as the MX records that are better than ours.
	Primaries []string `yaml:"primaries"`
	// To whom a probe pretends to have mail. Empty: postmaster of the domain, whom every server must know.
	ProbeRecipient string `yaml:"probe_recipient"`
}

// DefaultConfig is what an absent section means.
func DefaultConfig() Config {
	return Config{
		Every:         15 * time.Second,
		EveryDown:     time.Second,
		EveryLongDown: 5 * time.Second,
		LongDown:      time.Hour,
		EveryRefusing: 5 * time.Second,
		Confirm:       100 * time.Millisecond,
		Fall:          3,
		Rise:          2,
		FlapFalls:     6,
		FlapWindow:    10 * time.Minute,
		FlapRise:      16,
		Depth:         "rcpt",
		DialTimeout:   3 * time.Second,
		Timeout:       15 * time.Second,
		MaxProbes:     256,
		MaxLookups:    16,
		RouteMinTTL:   30 * time.Second,
		RouteMaxTTL:   time.Hour,
		MXPort:        25,
	}
}

// depths are the words of Config.Depth.
var depths = map[string]smtpc.Step{
	"connect": smtpc.StepDial, "banner": smtpc.StepBanner, "ehlo": smtpc.StepEHLO, "starttls": smtpc.StepSTARTTLS,
	"mail": smtpc.StepMAIL, "rcpt": smtpc.StepRCPT,
}

// Validate reports every fault at once.
func (c *Config) Validate() []mta.Fault {
	var faults []mta.Fault
	for _, d := range []struct {
		key string
		d   time.Duration
	}{
		{"every", c.Every}, {"every_down", c.EveryDown}, {"every_long_down", c.EveryLongDown},
		{"every_refusing", c.EveryRefusing}, {"confirm", c.Confirm}, {"dial_timeout", c.DialTimeout},
		{"timeout", c.Timeout}, {"route_min_ttl", c.RouteMinTTL},
	} {
		if d.d < time.Millisecond {
			faults = append(faults, mta.NewFault(d.key, "must be at least 1ms"))
		}
	}
	for _, n := range []struct {
		key      string
		n, least int
	}{
		{"fall", c.Fall, 1}, {"rise", c.Rise, 1}, {"flap_falls", c.FlapFalls, 2}, {"flap_rise", c.FlapRise, c.Rise},
		{"max_probes", c.MaxProbes, 1}, {"max_lookups", c.MaxLookups, 1},
	} {
		if n.n < n.least || n.n > 10_000 {
			faults = append(faults, mta.NewFault(n.key, "must be %d to 10000", n.least))
		}
	}
	if c.RouteMaxTTL < c.RouteMinTTL {
		faults = append(faults, mta.NewFault("route_max_ttl", "must be at least route_min_ttl"))
	}
	if _, ok := depths[c.Depth]; !ok {
		faults = append(faults, mta.NewFault("depth", "%q is not connect, banner, ehlo, starttls, mail or rcpt", c.Depth))
	}
	if c.MXPort == 0 {
		faults = append(faults, mta.NewFault("mx_port", "must be 1 to 65535"))
	}
	for i, s := range c.Self {
		if _, err := netip.ParseAddr(s); err == nil {
			continue
		}
		if _, err := mta.Domain(s); err != nil {
			faults = append(faults, mta.NewFault(fmt.Sprintf("self[%d]", i), "%q is neither an address nor a host name", s))
		}
	}
	return faults
}

// Validate reports every fault at once.
func (d *Domain) Validate() []mta.Fault {
	var faults []mta.Fault
	seen := make(map[mta.Primary]bool)
	for i, s := range d.Primaries {
		key := fmt.Sprintf("primaries[%d]", i)
		p, err := mta.ParsePrimary(s)
		switch {
		case err != nil:
			faults = append(faults, mta.NewFault(key, "%v", err))
		case seen[p]:
			faults = append(faults, mta.NewFault(key, "%s stands here twice", p))
		}
		seen[p] = true
	}
	if d.ProbeRecipient != "" {
		if p, err := mta.ParsePath(d.ProbeRecipient); err != nil || p.Domain == "" || strings.Contains(d.ProbeRecipient, "<") {
			faults = append(faults, mta.NewFault("probe_recipient", "%q is not an address, user@domain", d.ProbeRecipient))
		}
	}
	return faults
}
