package filter

import (
	"fmt"
	"net"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"

	"understudy/internal/mta"
)

// Kinds of filters.
const (
	Rspamd = "rspamd"
	Milter = "milter"
	Spamd  = "spamd"
	Clamd  = "clamd"
)

// What is done with a message that a filter did not answer about.
const (
	Defer         = "defer"
	AcceptAndMark = "accept_and_mark"
)

// Config is one filter.
type Config struct {
	// By what it is called in logs, metrics and findings: letters, digits, "-" and "_". Empty: its kind.
	Name string `yaml:"name"`
	// The protocol that it speaks: rspamd (HTTP, /checkv2), milter, spamd (SpamAssassin's) or clamd (ClamAV's).
	Kind string `yaml:"kind"`
	// Where it listens: HOST:PORT, unix:PATH, or for rspamd also an http or https URL.
	Address string `yaml:"address"`
	// The longest that one message may take, the wait for a free connection included. 0: 30s, for clamd 60s.
	Timeout time.Duration `yaml:"timeout"`
	// Messages that it is given at the same time; further ones wait. 0: 10.
	MaxConnections int `yaml:"max_connections"`
	// A larger message is not shown to it. 0: for spamd 500KiB, for rspamd 50MiB, for clamd 100MiB, for a milter no limit.
	MaxSize mta.Size `yaml:"max_size"`
	// Without its answer: defer (451, the sender tries again) or accept_and_mark. Empty: defer. Without a virus
	// scanner's answer a message is always deferred.
	OnFailure string `yaml:"on_failure"`
	// A milter or an rspamd that looks for viruses, such as ClamAV's milter. clamd always is one.
	VirusScanner bool `yaml:"virus_scanner"`
	// For rspamd: a file with the worker's password.
	PasswordFile string `yaml:"password_file"`
	// For rspamd by https: a PEM file with the certificates of the authorities. Empty: those of the system.
	TLSCA string `yaml:"tls_ca"`
	// For spamd: from this score on a message is refused. 0: what is over spamd's own threshold is marked, never refused.
	RejectScore float64 `yaml:"reject_score"`
}

// maxConnections bounds max_connections: each may hold a message of the largest size.
const maxConnections = 1000

// defaults are what a zero means, by kind.
var defaults = map[string]struct {
	timeout time.Duration
	size    mta.Size
}{
	Rspamd: {30 * time.Second, 50 * mta.MiB}, // rspamd's max_message
	Milter: {30 * time.Second, 0},
	Spamd:  {30 * time.Second, 500 * mta.KiB}, // spamc's -s
	Clamd:  {time.Minute, 100 * mta.MiB},      // clamd's StreamMaxLength
}

// completed is the config with what its zeros mean.
func (c Config) completed() Config {
	if c.Name == "" {
		c.Name = c.Kind
	}
	if c.Timeout == 0 {
		c.Timeout = defaults[c.Kind].timeout
	}
	if c.MaxConnections == 0 {
		c.MaxConnections = 10
	}
	if c.MaxSize == 0 {
		c.MaxSize = defaults[c.Kind].size
	}
	if c.OnFailure == "" {
		c.OnFailure = Defer
	}
	c.VirusScanner = c.VirusScanner || c.Kind == Clamd
	return c
}

// Files are the paths in it, for whoever knows from which folder a relative one is meant.
func (c *Config) Files() []*string { return []*string{&c.PasswordFile, &c.TLSCA} }

// Validate reports every fault of a list of filters at once; keys are relative to the list: "[0].kind".
func Validate(cfgs []Config) []mta.Fault {
	var faults []mta.Fault
	seen := map[string]int{}
	for i := range cfgs {
		c := cfgs[i].completed()
		for _, f := range c.faults() {
			faults = append(faults, mta.Fault{Key: fmt.Sprintf("[%d].%s", i, f.Key), Text: f.Text})
		}
		if first, ok := seen[c.Name]; ok && c.Name != "" {
			faults = append(faults, mta.NewFault(fmt.Sprintf("[%d].name", i), "[%d] is called %q already; give each a name of its own", first, c.Name))
			continue
		}
		seen[c.Name] = i
	}
	return faults
}

// nameShape keeps names fit for findings, metrics and per-domain lists.
var nameShape = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,31}$`)

// faults are those of a completed config.
func (c *Config) faults() []mta.Fault {
	var faults []mta.Fault
	add := func(key, format string, args ...any) { faults = append(faults, mta.NewFault(key, format, args...)) }
	if _, ok := defaults[c.Kind]; !ok {
		add("kind", "%q is not rspamd, milter, spamd or clamd", c.Kind)
		return faults // all else depends on it
	}
	if !nameShape.MatchString(c.Name) {
		add("name", "must be at most 32 letters, digits, - and _, not %q", c.Name)
	}
	if err := c.checkAddress(); err != nil {
		add("address", "%v", err)
	}
	if c.Timeout < 0 {
		add("timeout", "must be above 0, for example 30s")
	}
	if c.MaxConnections < 0 || c.MaxConnections > maxConnections {
		add("max_connections", "must be 1 to %d", maxConnections)
	}
	if c.MaxSize < 0 {
		add("max_size", "must be above 0, for example 50MiB")
	}
	switch {
	case c.OnFailure != Defer && c.OnFailure != AcceptAndMark:
		add("on_failure", "%q is not defer or accept_and_mark", c.OnFailure)
	case c.OnFailure == AcceptAndMark && c.VirusScanner:
		add("on_failure", "mail is always deferred without a virus scanner's answer; leave this out")
	}
	if c.Kind != Rspamd && (c.PasswordFile != "" || c.TLSCA != "") {
		add("password_file", "password_file and tls_ca are for rspamd alone")
	}
	if c.TLSCA != "" && !strings.HasPrefix(c.Address, "https:") {
		add("tls_ca", "needs an https address")
	}
	if c.RejectScore < 0 || c.RejectScore > 0 && c.Kind != Spamd {
		add("reject_score", "must be above 0, and is for spamd alone; rspamd has thresholds of its own")
	}
	return faults
}

func (c *Config) checkAddress() error {
	if c.Kind == Rspamd && strings.Contains(c.Address, "://") {
		u, err := url.Parse(c.Address)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
			return fmt.Errorf("%q is not an http or https URL of a host", c.Address)
		}
		return nil
	}
	network, address := endpoint(c.Address)
	if network == "unix" {
		if !strings.HasPrefix(address, "/") {
			return fmt.Errorf("%q: the path of a socket begins with /", c.Address)
		}
		return nil
	}
	host, port, err := net.SplitHostPort(address)
	if n, perr := strconv.ParseUint(port, 10, 16); err != nil || host == "" || perr != nil || n == 0 {
		return fmt.Errorf("%q is neither HOST:PORT nor unix:/PATH", c.Address)
	}
	return nil
}

// endpoint splits an address into what net.Dial wants.
func endpoint(address string) (network, at string) {
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		return "unix", path
	}
	return "tcp", address
}
