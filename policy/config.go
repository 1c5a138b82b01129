package policy

import (
	"fmt"
	"strings"
	"time"

	"understudy/internal/filter"
	"understudy/internal/mailauth"
	"understudy/internal/mta"
)

// Config is what holds for every domain.
type Config struct {
	// Hostname is our own name, the top level's hostname. A bare <postmaster> gets its domain from it.
	Hostname string `yaml:"-"`

	// RecipientDelimiter holds the characters that set off an address extension: with "+", user+news@example.org is
	// taken where user@example.org is listed, because a primary that knows extensions would take it. Empty: none.
	RecipientDelimiter string `yaml:"recipient_delimiter"`

	// AlwaysTaken are local parts that are taken at every domain, listed or not. postmaster is always among them
	// (RFC 5321, 4.5.1); abuse is a good second one where the primary has it (RFC 2142).
	AlwaysTaken []string `yaml:"always_taken"`

	// StateDir is the folder where the last good copy of each source is kept.
	StateDir string `yaml:"state_dir"`

	// Sources are the lists that are fetched from elsewhere, by name. A domain names those that list its recipients.
	Sources map[string]Source `yaml:"sources"`

	// Learned is what the primaries teach us of their recipients.
	Learned Learned `yaml:"learned"`

	// AmnesiaWindow is how long after a primary's return its refusal of a recipient that we know is not believed: a
	// server that was restored with an empty table of users refuses everybody. 0: it is believed at once.
	AmnesiaWindow time.Duration `yaml:"amnesia_window"`

	// Limits bound what one client network or one sender domain may bring, whatever becomes of it.
	Limits Limits `yaml:"limits"`

	// Parity says how our verdicts are measured against the primary's.
	Parity Parity `yaml:"parity"`

	// Judge is how mail is judged that we take in the primary's place.
	Judge Judge `yaml:"judge"`

	// Auth bounds SPF, DKIM and DMARC.
	Auth mailauth.Config `yaml:"auth"`

	// Filters are the content filters that judge mail, each of which may refuse it.
	Filters []filter.Config `yaml:"filters"`

	// HindsightAfter is how long a message must have waited to be judged again before it is handed over: lists and
	// filters know more by then. 0: none is.
	HindsightAfter time.Duration `yaml:"hindsight_after"`
}

// Learned says how long the primaries' own replies to RCPT are remembered, and how they are asked for. Times are those
// of Postfix's address verification, and mean the same.
type Learned struct {
	// MaxEntries is how many addresses are remembered, over all domains. At most a quarter are unknown ones, so that the
	// guessing of addresses can't push out the real ones. 0: nothing is learned.
	MaxEntries int `yaml:"max_entries"`
	// PositiveTTL is how long "it exists" is believed, PositiveRefresh when a lookup asks for a new reply.
	PositiveTTL     time.Duration `yaml:"positive_ttl"`
	PositiveRefresh time.Duration `yaml:"positive_refresh"`
	// NegativeTTL is how long "it does not exist" is believed, NegativeRefresh when a lookup asks for a new reply.
	NegativeTTL     time.Duration `yaml:"negative_ttl"`
	NegativeRefresh time.Duration `yaml:"negative_refresh"`
	// CalloutsPerMinute is how many recipients a minute a domain's primary is asked about, without sending anything.
	// 0: it is never asked.
	CalloutsPerMinute int `yaml:"callouts_per_minute"`
}

// DefaultConfig is the one place for defaults.
func DefaultConfig() Config {
	const day = 24 * time.Hour
	return Config{
		RecipientDelimiter: "+",
		StateDir:           "/var/lib/understudy/recipients",
		Learned: Learned{
			MaxEntries: 200_000, PositiveTTL: 31 * day, PositiveRefresh: 7 * day, NegativeTTL: 3 * day,
			NegativeRefresh: 3 * time.Hour, CalloutsPerMinute: 30,
		},
		AmnesiaWindow: 15 * time.Minute,
		Limits:        defaultLimits(),
		Parity:        Parity{Sample: 0.1, AlarmBypass: 0.01, AlarmMessages: 50, Keep: 90 * day},
		Judge:         defaultJudge(), Auth: mailauth.DefaultConfig(), HindsightAfter: 15 * time.Minute,
	}
}

// Validate reports every mistake.
func (c *Config) Validate() []mta.Fault {
	var faults []mta.Fault
	for _, r := range c.RecipientDelimiter {
		if r <= ' ' || r >= 0x7f || strings.ContainsRune(`@."\<>`, r) || isAlphanumeric(r) {
			faults = append(faults, mta.NewFault("recipient_delimiter", "%q can't set off an extension: write signs such as %q", r, "+"))
		}
	}
	for i, l := range c.AlwaysTaken {
		if _, err := mta.MakePath(l, "example.org"); err != nil || strings.Contains(l, "@") {
			faults = append(faults, mta.NewFault(index("always_taken", i), "%q is not a local part: write the part before the @", l))
		}
	}
	if len(c.Sources) > 0 && c.StateDir == "" {
		faults = append(faults, mta.NewFault("state_dir", "is needed where there are sources: their last good copies are kept there"))
	}
	for name, s := range c.Sources {
		if !validSourceName(name) {
			faults = append(faults, mta.NewFault("sources."+name, "the name of a source has 1 to 64 letters a-z, digits, - and _, and is none of %s", strings.Join(reservedNames, ", ")))
		}
		faults = append(faults, below("sources."+name, s.Validate())...)
	}
	if c.AmnesiaWindow < 0 || c.AmnesiaWindow > 24*time.Hour {
		faults = append(faults, mta.NewFault("amnesia_window", "%v is not between 0 and a day", c.AmnesiaWindow))
	}
	faults = append(faults, below("limits", c.Limits.Validate())...)
	faults = append(faults, below("parity", c.Parity.Validate())...)
	faults = append(faults, c.judgeFaults()...)
	return append(faults, below("learned", c.Learned.Validate())...)
}

// Validate reports every mistake.
func (l *Learned) Validate() []mta.Fault {
	var faults []mta.Fault
	if l.MaxEntries < 0 || l.MaxEntries > 50_000_000 {
		faults = append(faults, mta.NewFault("max_entries", "%d is not between 0 and 50000000", l.MaxEntries))
	}
	if l.CalloutsPerMinute < 0 || l.CalloutsPerMinute > 600 {
		faults = append(faults, mta.NewFault("callouts_per_minute", "%d is not between 0 and 600", l.CalloutsPerMinute))
	}
	if l.PositiveRefresh < time.Minute || l.PositiveTTL <= l.PositiveRefresh {
		faults = append(faults, mta.NewFault("positive_refresh", "must be at least a minute, and shorter than positive_ttl"))
	}
	if l.NegativeRefresh < time.Minute || l.NegativeTTL <= l.NegativeRefresh {
		faults = append(faults, mta.NewFault("negative_refresh", "must be at least a minute, and shorter than negative_ttl"))
	}
	return faults
}

func isAlphanumeric(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
}

func index(key string, i int) string { return fmt.Sprintf("%s[%d]", key, i) }

// below puts the faults of a part under its key.
func below(key string, faults []mta.Fault) []mta.Fault {
	for i := range faults {
		faults[i].Key = strings.TrimSuffix(key+"."+faults[i].Key, ".")
	}
	return faults
}
