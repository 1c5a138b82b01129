package config

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"understudy/forwarder"
	"understudy/healthprobe"
	"understudy/inbound"
	"understudy/internal/admin"
	"understudy/internal/alert"
	"understudy/internal/dnsx"
	"understudy/internal/mta"
	"understudy/policy"
	"understudy/spool"
)

// Config is the whole configuration: a section for each part, and the mail domains.
type Config struct {
	// Hostname is the name of this host as the MX records have it. It is in our greeting, our EHLO and our Received
	// fields, and says which MX record is our own.
	Hostname string `yaml:"hostname"`

	// Domains are the mail domains that are backed up.
	Domains Domains `yaml:"domains"`

	Inbound     inbound.Config     `yaml:"inbound"`
	Policy      policy.Config      `yaml:"policy"`
	Spool       spool.Config       `yaml:"spool"`
	Healthprobe healthprobe.Config `yaml:"healthprobe"`
	Forwarder   forwarder.Config   `yaml:"forwarder"`
	DNS         dnsx.Config        `yaml:"dns"`
	Alerts      alert.Config       `yaml:"alerts"`
	Admin       admin.Config       `yaml:"admin"`
	Log         Log                `yaml:"log"`
}

// Log says what is logged, to stderr.
type Log struct {
	// Level is the least that is logged: debug, info, warn or error.
	Level slog.Level `yaml:"level"`
	// Format is text, json, or auto: text on a terminal, JSON otherwise.
	Format LogFormat `yaml:"format"`
}

// LogFormat is how a line of the log is written.
type LogFormat string

// The formats of the log.
const (
	LogAuto LogFormat = "auto"
	LogText LogFormat = "text"
	LogJSON LogFormat = "json"
)

// UnmarshalText implements encoding.TextUnmarshaler.
func (f *LogFormat) UnmarshalText(b []byte) error {
	switch v := LogFormat(b); v {
	case LogAuto, LogText, LogJSON:
		*f = v
		return nil
	}
	return fmt.Errorf("want auto, text or json, not %q", b)
}

// Domains are the mail domains by name, in the form of mta.Domain.
type Domains map[string]Domain

// canonicalKey takes a domain as people write it, in any case and either form of an internationalised name.
func (Domains) canonicalKey(s string) (string, error) { return mta.Domain(s) }

// Domain is what the parts want to know of one mail domain.
type Domain struct {
	Policy      policy.Domain      `yaml:",inline"`
	Healthprobe healthprobe.Domain `yaml:",inline"`
	Forwarder   forwarder.Domain   `yaml:",inline"`
}

// Default is the configuration before a file was read. It has no hostname and no domains, so it is not valid.
func Default() *Config {
	return &Config{
		Inbound:     inbound.DefaultConfig(),
		Policy:      policy.DefaultConfig(),
		Spool:       spool.DefaultConfig(),
		Healthprobe: healthprobe.DefaultConfig(),
		Forwarder:   forwarder.DefaultConfig(),
		DNS:         dnsx.DefaultConfig(),
		Alerts:      alert.DefaultConfig(),
		Admin:       admin.DefaultConfig(),
		Log:         Log{Level: slog.LevelInfo, Format: LogAuto},
	}
}

// PolicyDomains are the domains as policy wants them.
func (c *Config) PolicyDomains() map[string]policy.Domain {
	return domainsOf(c, func(d Domain) policy.Domain { return d.Policy })
}

// HealthprobeDomains are the domains as healthprobe wants them.
func (c *Config) HealthprobeDomains() map[string]healthprobe.Domain {
	return domainsOf(c, func(d Domain) healthprobe.Domain { return d.Healthprobe })
}

// ForwarderDomains are the domains as forwarder wants them.
func (c *Config) ForwarderDomains() map[string]forwarder.Domain {
	return domainsOf(c, func(d Domain) forwarder.Domain { return d.Forwarder })
}

func domainsOf[T any](c *Config, of func(Domain) T) map[string]T {
	m := make(map[string]T, len(c.Domains))
	for name, d := range c.Domains {
		m[name] = of(d)
	}
	return m
}

// hand gives the parts what they need of the top level and of each other.
func (c *Config) hand() {
	c.Inbound.Hostname = c.Hostname
	c.Policy.Hostname = c.Hostname
	c.Healthprobe.Hostname = c.Hostname
	if c.Inbound.TempDir == "" {
		c.Inbound.TempDir = c.Spool.Dir
	}
}

// paths are the places that hold the path of a file. A relative one is meant from the configuration file's folder.
func (c *Config) paths() []*string {
	paths := []*string{
		&c.Inbound.TempDir, &c.Inbound.StateDir, &c.Inbound.ACME.RootCAs, &c.Inbound.ETRN.ClientCA,
		&c.Policy.StateDir, &c.Spool.Dir, &c.Spool.KeyFile, &c.Admin.Socket, &c.Admin.TokenFile, &c.Admin.HintTokenFile,
	}
	for i := range c.Alerts.Webhooks {
		paths = append(paths, &c.Alerts.Webhooks[i].TokenFile)
	}
	for i := range c.Inbound.TLS.Certificates {
		paths = append(paths, &c.Inbound.TLS.Certificates[i].Cert, &c.Inbound.TLS.Certificates[i].Key)
	}
	for i := range c.Policy.Filters {
		paths = append(paths, c.Policy.Filters[i].Files()...)
	}
	for i := range c.Spool.OldKeyFiles {
		paths = append(paths, &c.Spool.OldKeyFiles[i])
	}
	return paths
}

// sourcePaths are the places of a source that hold the path of a file.
func sourcePaths(s *policy.Source) []*string {
	return []*string{&s.File, &s.TokenFile, &s.CAFile, &s.LDAP.PasswordFile, &s.SQL.DSNFile}
}

// paths are the places of a domain that hold the path of a file.
func (d *Domain) paths() []*string {
	return []*string{&d.Policy.Recipients, &d.Forwarder.TLSCA, &d.Forwarder.TLSCert, &d.Forwarder.TLSKey}
}

// Validate reports every fault of the whole; their keys are the full ones.
func (c *Config) Validate() []mta.Fault {
	faults := checkHostname(c.Hostname)
	if len(c.Domains) == 0 {
		faults = append(faults, mta.NewFault("domains", "name at least one mail domain"))
	}
	for _, s := range []struct {
		name string
		part interface{ Validate() []mta.Fault }
	}{
		{"inbound", &c.Inbound}, {"policy", &c.Policy}, {"spool", &c.Spool}, {"healthprobe", &c.Healthprobe},
		{"forwarder", &c.Forwarder}, {"dns", &c.DNS}, {"alerts", &c.Alerts}, {"admin", &c.Admin},
	} {
		faults = append(faults, below(s.name, s.part.Validate())...)
	}
	faults = append(faults, below("domains", policy.CheckDomains(c.Policy, c.PolicyDomains()))...)
	for name, d := range c.Domains {
		of := slices.Concat(d.Policy.Validate(), d.Healthprobe.Validate(), d.Forwarder.Validate())
		faults = append(faults, below("domains."+name, of)...)
	}
	return faults
}

// below puts the faults of a part under its section. Our name is the top level's, and has been judged there.
func below(section string, faults []mta.Fault) []mta.Fault {
	faults = slices.DeleteFunc(faults, func(f mta.Fault) bool { return f.Key == "hostname" })
	for i := range faults {
		faults[i].Key = join(section, faults[i].Key)
	}
	return faults
}

// checkHostname wants what a peer can look up (RFC 5321, 2.3.5). Primaries refuse a client that greets with less.
func checkHostname(s string) []mta.Fault {
	fault := func(format string, args ...any) []mta.Fault {
		return []mta.Fault{mta.NewFault("hostname", format, args...)}
	}
	if s == "" {
		return fault("the name of this host is needed, as the MX records have it: mx2.example.org")
	}
	host, err := mta.Domain(s)
	switch {
	case err != nil:
		return fault("%v", err)
	case !strings.Contains(host, "."):
		return fault("%q is not a full name: write it with its domain, mx2.example.org", s)
	case strings.Contains(host, "_"):
		return fault("%q has an underscore, which no host name may have", s)
	case hasSuffix(host, "localhost", "localdomain"):
		return fault("%q means something else on every host: write the public name, mx2.example.org", s)
	case host[len(host)-1] >= '0' && host[len(host)-1] <= '9':
		return fault("%q is an address: write the name of the host", s)
	}
	return nil
}

func hasSuffix(host string, suffixes ...string) bool {
	for _, s := range suffixes {
		if strings.HasSuffix(host, "."+s) {
			return true
		}
	}
	return false
}
