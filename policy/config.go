package policy

import (
	"fmt"
	"strings"

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
}

// DefaultConfig is the one place for defaults.
func DefaultConfig() Config {
	return Config{RecipientDelimiter: "+"}
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
	return faults
}

func isAlphanumeric(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
}

// Domain is what holds for one mail domain.
type Domain struct {
	// Recipients is the file that lists all recipients of the domain, one address a line; everyone else is refused with
	// 550 5.1.1. "@example.org" on a line takes every address of that domain. "#" begins a comment. What follows an
	// address on its line is read over, so a Postfix relay_recipient_maps text file works as it is. A file may serve
	// several domains.
	Recipients string `yaml:"recipients"`

	// AcceptAll takes every address of the domain, where no list can be had. What the primary then refuses stays here
	// in quarantine.
	AcceptAll bool `yaml:"accept_all"`
}

// Validate reports every mistake.
func (d *Domain) Validate() []mta.Fault {
	switch {
	case d.Recipients == "" && !d.AcceptAll:
		return []mta.Fault{mta.NewFault("recipients", "who are the recipients? Name the file that lists them, or say accept_all: true")}
	case d.Recipients != "" && d.AcceptAll:
		return []mta.Fault{mta.NewFault("accept_all", "can't be true together with a recipients file: keep one of them")}
	}
	return nil
}

func index(key string, i int) string { return fmt.Sprintf("%s[%d]", key, i) }
