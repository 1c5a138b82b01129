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
	// How old mail may become before it is put into quarantine, where it stays until an operator decides.
	Expire time.Duration `yaml:"expire"`
	// Most reports to senders an hour. They go only to senders that were proved when the mail came; what can't be reported stays
	// in quarantine. 0: none.
	ReportsPerHour float64 `yaml:"reports_per_hour"`
	// Most messages, and octets of content, a second to one route. 0: no limit.
	MessagesPerSecond float64  `yaml:"messages_per_second"`
	BytesPerSecond    mta.Size `yaml:"bytes_per_second"`
	// What makes the breaker open.
	Breaker Breaker `yaml:"breaker"`
	// Sessions over which a primary that is up judges mail as it comes in.
	Inline InlineConfig `yaml:"inline"`
	// Tell primaries of clients with private and loopback addresses too. For tests only: such an address can be one that the
	// primary trusts.
	AllowPrivateClients bool `yaml:"allow_private_clients"`
	// Addresses to connect from, at most one IPv4 and one IPv6. None: the system chooses.
	Source []string `yaml:"source"`
}

// Breaker says when a primary that has just come back refuses for good far more than it should: a server that was restored
// with an empty user table must not cost one message. The drain stops then, what was refused goes back to the queue, and an
// alert goes out.
type Breaker struct {
	// The share of recipients that are refused, 0 to 1, above which it opens. Refusals of content, which spam may
	// deserve, count for a third.
	Share float64 `yaml:"share"`
	// After how many recipients the share counts.
	Results int `yaml:"results"`
	// So many refusals, right at the start and without one recipient taken, open it too.
	Streak int `yaml:"streak"`
	// How long until it is tried again. 0: only when an operator says so.
	RetryAfter time.Duration `yaml:"retry_after"`
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
		Expire:          30 * 24 * time.Hour,
		ReportsPerHour:  360,
		Breaker:         Breaker{Share: 0.2, Results: 20, Streak: 5, RetryAfter: 15 * time.Minute},
		Inline:          defaultInline(),
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
	add(c.Expire < time.Hour, "expire", "%s: must be at least 1h", c.Expire)
	add(c.ReportsPerHour < 0, "reports_per_hour", "%v: must not be negative", c.ReportsPerHour)
	add(c.MessagesPerSecond < 0, "messages_per_second", "%v: must not be negative", c.MessagesPerSecond)
	add(c.BytesPerSecond < 0, "bytes_per_second", "%s: must not be negative", c.BytesPerSecond)
	add(c.Breaker.Share <= 0 || c.Breaker.Share > 1, "breaker.share", "%v: must be above 0, at most 1", c.Breaker.Share)
	add(c.Breaker.Results < 1, "breaker.results", "%d: must be at least 1", c.Breaker.Results)
	add(c.Breaker.Streak < 1, "breaker.streak", "%d: must be at least 1", c.Breaker.Streak)
	add(c.Breaker.RetryAfter < 0, "breaker.retry_after", "%s: must not be negative", c.Breaker.RetryAfter)
	c.Inline.validate(add)
	for i, s := range c.Source {
		_, err := netip.ParseAddr(s)
		add(err != nil, fmt.Sprintf("source[%d]", i), "%q: is not an IP address", s)
	}
	return faults
}
