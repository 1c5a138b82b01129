package forwarder

import (
	"fmt"
	"net/netip"
	"time"

	"understudy/internal/mta"
)

// Config says how mail is handed over.
type Config struct {
	// Most sessions at a time to one route, which is one set of primaries.
	Sessions int `yaml:"sessions"`
	// Most messages over one session, then a new one. Exim closes after 1000 by default.
	SessionMessages int `yaml:"session_messages"`
	// Most messages of a session that are sent and not answered yet. So many may arrive twice when a session is cut.
	Window int `yaml:"window"`
	// How long a session without work is kept.
	Idle time.Duration `yaml:"idle"`
	// A message that the primary defers is tried again after retry_min, then after twice that, up to retry_max.
	RetryMin time.Duration `yaml:"retry_min"`
	RetryMax time.Duration `yaml:"retry_max"`
	// Memory for content that is read ahead of the wire. What does not fit is read while it is sent.
	Memory mta.Size `yaml:"memory"`
	// How often the spool is looked through even if nothing gave a sign.
	Poll time.Duration `yaml:"poll"`
	// How long a stop waits for replies to what was sent.
	ShutdownGrace time.Duration `yaml:"shutdown_grace"`
	// Addresses to connect from, at most one IPv4 and one IPv6. None: the system chooses.
	Source []string `yaml:"source"`
}

// DefaultConfig is what an absent section means.
func DefaultConfig() Config {
	return Config{
		Sessions:        20,
		SessionMessages: 1000,
		Window:          128,
		Idle:            5 * time.Second,
		RetryMin:        time.Minute,
		RetryMax:        30 * time.Minute,
		Memory:          64 * mta.MiB,
		Poll:            5 * time.Second,
		ShutdownGrace:   30 * time.Second,
	}
}

// Validate tells every fault.
func (c *Config) Validate() []mta.Fault {
	var faults []mta.Fault
	add := func(bad bool, key, format string, args ...any) {
		if bad {
			faults = append(faults, mta.NewFault(key, format, args...))
		}
	}
	add(c.Sessions < 1 || c.Sessions > 1000, "sessions", "%d: must be 1 to 1000", c.Sessions)
	add(c.SessionMessages < 1, "session_messages", "%d: must be at least 1", c.SessionMessages)
	add(c.Window < 1 || c.Window > 128, "window", "%d: must be 1 to 128", c.Window)
	add(c.Idle < 0, "idle", "%s: must not be negative", c.Idle)
	add(c.RetryMin < time.Second, "retry_min", "%s: must be at least 1s", c.RetryMin)
	add(c.RetryMax < c.RetryMin, "retry_max", "%s: must not be less than retry_min (%s)", c.RetryMax, c.RetryMin)
	add(c.Memory < mta.MiB, "memory", "%s: must be at least 1MiB", c.Memory)
	add(c.Poll < 100*time.Millisecond, "poll", "%s: must be at least 100ms", c.Poll)
	add(c.ShutdownGrace < 0, "shutdown_grace", "%s: must not be negative", c.ShutdownGrace)
	for i, s := range c.Source {
		_, err := netip.ParseAddr(s)
		add(err != nil, fmt.Sprintf("source[%d]", i), "%q: is not an IP address", s)
	}
	return faults
}

// Domain is what the config says of the outbound side of one mail domain.
type Domain struct{}

// Validate tells every fault.
func (d *Domain) Validate() []mta.Fault { return nil }
