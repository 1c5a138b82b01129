package mailauth

import (
	"fmt"
	"slices"
	"time"

	"understudy/internal/mta"
)

// Config bounds the work on one message.
type Config struct {
	// How long SPF may take, reverse-path and HELO name together (RFC 7208, 4.6.4: at least 20s). Then it is temperror.
	SPFTimeout time.Duration `yaml:"spf_timeout"`
	// How many lookups of one SPF record may find nothing before it is an error (RFC 7208, 4.6.4: 2).
	VoidLookups int `yaml:"void_lookups"`
	// How long DKIM and DMARC may take together. Then what is not known is temperror.
	ContentTimeout time.Duration `yaml:"content_timeout"`
	// At most so many DKIM signatures are verified, from the top; others are not looked at.
	Signatures int `yaml:"signatures"`
	// How DMARC finds the organizational domain: `walk`, the DNS tree walk of RFC 9989, or `public_suffix`, the list of
	// public suffixes that this program was built with, as filters that follow RFC 7489 do.
	OrganizationalDomain OrganizationalDomain `yaml:"organizational_domain"`
}

// OrganizationalDomain is how DMARC finds it.
type OrganizationalDomain uint8

const (
	Walk         OrganizationalDomain = iota // RFC 9989, 4.10
	PublicSuffix                             // RFC 7489, 3.2
)

var organizationalNames = [...]string{"walk", "public_suffix"}

func (o OrganizationalDomain) String() string { return organizationalNames[o%2] }

// MarshalText implements encoding.TextMarshaler.
func (o OrganizationalDomain) MarshalText() ([]byte, error) { return []byte(o.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (o *OrganizationalDomain) UnmarshalText(b []byte) error {
	i := slices.Index(organizationalNames[:], string(b))
	if i < 0 {
		return fmt.Errorf("want walk or public_suffix, not %q", b)
	}
	*o = OrganizationalDomain(i)
	return nil
}

// DefaultConfig is what an absent section means.
func DefaultConfig() Config {
	return Config{
		SPFTimeout:     20 * time.Second,
		VoidLookups:    2,
		ContentTimeout: 20 * time.Second,
		Signatures:     6,
	}
}

// Validate reports every fault at once.
func (c *Config) Validate() []mta.Fault {
	var faults []mta.Fault
	if c.SPFTimeout <= 0 {
		faults = append(faults, mta.NewFault("spf_timeout", "must be above 0, for example 20s"))
	}
	if c.VoidLookups < 0 || c.VoidLookups > 10 {
		faults = append(faults, mta.NewFault("void_lookups", "must be 0 to 10"))
	}
	if c.ContentTimeout <= 0 {
		faults = append(faults, mta.NewFault("content_timeout", "must be above 0, for example 20s"))
	}
	if c.Signatures < 1 || c.Signatures > maxSignatures {
		faults = append(faults, mta.NewFault("signatures", "must be 1 to %d", maxSignatures))
	}
	return faults
}
