package inbound

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"understudy/internal/mta"
)

// Config is how we stand towards senders.
type Config struct {
	Hostname string `yaml:"-"` // our name, from the top level of the configuration

	// Where to listen: "ADDRESS:PORT", ":PORT" for all addresses of both families, "systemd" for the sockets that
	// systemd passes, "systemd:NAME" for those of one name. An entry may also be a mapping with the keys address,
	// hide and proxy_from.
	Listen []Listener `yaml:"listen"`

	MaxMessageSize mta.Size    `yaml:"max_message_size"` // a message of exactly this size is taken; larger ones get 552 5.3.4
	MaxRecipients  int         `yaml:"max_recipients"`   // of one message; the next one gets 452 4.5.3, so that the sender sends another copy
	BareNewline    BareNewline `yaml:"bare_newline"`     // normalize: bare CR and LF in content become CR LF; reject: such mail gets 550 5.6.0
	Contact        string      `yaml:"contact"`          // a URL, an address or a telephone number that refusals name as the place to ask; empty for none

	CommandTimeout time.Duration `yaml:"command_timeout"` // how long a client may take for one command
	ContentWindow  time.Duration `yaml:"content_window"`  // in each span of this length …
	ContentFloor   mta.Size      `yaml:"content_floor"`   // … a client that sends content must send at least this much a second
	ShutdownGrace  time.Duration `yaml:"shutdown_grace"`  // how long messages in progress may take to end when we stop

	TempDir  string `yaml:"temp_dir"`  // content beyond 256 KiB waits here, in files without a name; empty for the spool's folder
	StateDir string `yaml:"state_dir"` // our own certificate and those of ACME are kept here

	MaxConnections int            `yaml:"max_connections"` // in all; the next client gets 421 4.7.0
	MaxPerNetwork  int            `yaml:"max_per_network"` // from one /24 of IPv4 or /64 of IPv6
	MaxPerMinute   int            `yaml:"max_per_minute"`  // new connections a minute from such a network
	MaxErrors      int            `yaml:"max_errors"`      // refused commands on a connection; then 421 4.7.0
	MaxRefused     int            `yaml:"max_refused"`     // recipients refused for other reasons than being unknown on a connection; then 421 4.7.0
	MaxUnknown     int            `yaml:"max_unknown"`     // unknown recipients on a connection; then 421 4.7.0
	Tarpit         time.Duration  `yaml:"tarpit"`          // each refusal waits so long once half of max_errors, max_refused or max_unknown is reached
	Trusted        []netip.Prefix `yaml:"trusted"`         // networks without these limits per client and without the pregreet test

	MaxInlinePerClient int `yaml:"max_inline_per_client"` // messages on their way to a primary at once from such a network; then 451 4.7.0

	Pregreet Pregreet `yaml:"pregreet"`
	TLS      TLS      `yaml:"tls"`
	ACME     ACME     `yaml:"acme"`
	ETRN     ETRN     `yaml:"etrn"`

	// Offer REQUIRETLS (RFC 8689). Only right if every primary offers it too.
	RequireTLS bool `yaml:"requiretls"`
}

// Pregreet is the test for clients that talk before they were greeted, which real mail servers never do.
type Pregreet struct {
	Wait   time.Duration  `yaml:"wait"`   // how long the greeting of a client that we have not seen before takes; 0 switches the test off
	Action PregreetAction `yaml:"action"` // refuse: 521 and the end; mark: taken, and policy is told
}

// TLS is how STARTTLS is done.
type TLS struct {
	Certificates []Certificate `yaml:"certificates"` // by the client's SNI, else the first; without any, ACME's or one that we sign ourselves
}

// Certificate names the files of one certificate. They are read again when they change.
type Certificate struct {
	Cert string `yaml:"cert"` // PEM, the chain
	Key  string `yaml:"key"`  // PEM
}

// ACME gets a certificate for our name from an authority, with the HTTP-01 challenge.
type ACME struct {
	Enabled   bool   `yaml:"enabled"`
	Listen    string `yaml:"listen"`    // where the authority's challenge reaches us; it always calls port 80
	Directory string `yaml:"directory"` // the authority
	Email     string `yaml:"email"`     // where it may write about the certificate; may be empty
	RootCAs   string `yaml:"root_cas"`  // PEM file with what its own HTTPS is checked against; empty for the system's
}

// ETRN is who may ask us for their mail (RFC 1985), besides the addresses of a domain's primaries.
type ETRN struct {
	Networks []netip.Prefix `yaml:"networks"`
	ClientCA string         `yaml:"client_ca"` // PEM file: clients with a certificate of this authority may
}

// Listener is one place to listen. In configuration it is a string, the address, or a mapping.
type Listener struct {
	Address   string         `yaml:"address"`
	Hide      []string       `yaml:"hide"`       // EHLO keywords that are not offered, and not taken, here
	ProxyFrom []netip.Prefix `yaml:"proxy_from"` // load balancers, which must send a PROXY protocol header (version 1 or 2) first
}

// UnmarshalText implements encoding.TextUnmarshaler: the short form, an address alone.
func (l *Listener) UnmarshalText(b []byte) error {
	*l = Listener{Address: string(b)}
	return nil
}

// BareNewline is what becomes of a CR or LF that stands alone.
type BareNewline string

const (
	NormalizeNewlines  BareNewline = "normalize"
	RejectBareNewlines BareNewline = "reject"
)

// PregreetAction is what becomes of a client that talks too early.
type PregreetAction string

const (
	PregreetRefuse PregreetAction = "refuse"
	PregreetMark   PregreetAction = "mark"
)

// minRecipients is the least that a server must take (RFC 5321, 4.5.3.1.8).
const minRecipients = 100

// minMessageSize is the least that a server must take (RFC 5321, 4.5.3.1.7).
const minMessageSize = 64 * mta.KiB

// DefaultConfig is a configuration that works for most.
func DefaultConfig() Config {
	return Config{
		Listen:         []Listener{{Address: ":25"}},
		MaxMessageSize: 64 * mta.MiB,
		MaxRecipients:  1000,
		BareNewline:    NormalizeNewlines,
		CommandTimeout: 5 * time.Minute, // RFC 5321, 4.5.3.2.7
		ContentWindow:  5 * time.Minute,
		ContentFloor:   mta.KiB,
		ShutdownGrace:  30 * time.Second,
		StateDir:       "/var/lib/understudy/tls",
		MaxConnections: 5000,
		MaxPerNetwork:  100,
		MaxPerMinute:   300,
		MaxErrors:      20,
		MaxRefused:     50,
		MaxUnknown:     10,
		Tarpit:         time.Second,
		Trusted:        []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")},

		MaxInlinePerClient: 10,

		Pregreet: Pregreet{Wait: 2 * time.Second, Action: PregreetRefuse},
		ACME:     ACME{Listen: ":80", Directory: "https://acme-v02.api.letsencrypt.org/directory"},
	}
}

// Validate reports every fault.
func (c *Config) Validate() []mta.Fault {
	var faults faults
	if _, err := mta.Domain(c.Hostname); err != nil {
		faults.add("hostname", "our own name is needed: %v", err)
	}
	if len(c.Listen) == 0 {
		faults.add("listen", "name at least one address, for example :25")
	}
	for i, l := range c.Listen {
		l.validate(&faults, fmt.Sprintf("listen[%d]", i))
		if same := func(o Listener) bool { return o.Address == l.Address }; slices.IndexFunc(c.Listen, same) < i && !strings.HasSuffix(l.Address, ":0") {
			faults.add(fmt.Sprintf("listen[%d]", i), "%s is listed twice", l.Address)
		}
	}
	if c.MaxMessageSize < minMessageSize {
		faults.add("max_message_size", "must be at least %s", minMessageSize)
	}
	if c.MaxRecipients < minRecipients {
		faults.add("max_recipients", "must be at least %d (RFC 5321, 4.5.3.1.8)", minRecipients)
	}
	if c.BareNewline != NormalizeNewlines && c.BareNewline != RejectBareNewlines {
		faults.add("bare_newline", "%q is unknown; write %s or %s", c.BareNewline, NormalizeNewlines, RejectBareNewlines)
	}
	if !isPrintableASCII(c.Contact) || len(c.Contact) > 200 {
		faults.add("contact", "must be printable ASCII and at most 200 octets: it is a part of replies")
	}
	c.validateLimits(&faults)
	if a := c.Pregreet.Action; a != PregreetRefuse && a != PregreetMark {
		faults.add("pregreet.action", "%q is unknown; write %s or %s", a, PregreetRefuse, PregreetMark)
	}
	for i, cert := range c.TLS.Certificates {
		if cert.Cert == "" || cert.Key == "" {
			faults.add(fmt.Sprintf("tls.certificates[%d]", i), "needs both cert and key")
		}
	}
	c.ACME.validate(&faults, c.StateDir)
	return faults
}

// faults collects what is wrong.
type faults []mta.Fault

func (f *faults) add(key, format string, args ...any) {
	*f = append(*f, mta.NewFault(key, format, args...))
}

func (c *Config) validateLimits(faults *faults) {
	for _, n := range []struct {
		key string
		n   int
	}{
		{"max_connections", c.MaxConnections}, {"max_per_network", c.MaxPerNetwork}, {"max_per_minute", c.MaxPerMinute},
		{"max_errors", c.MaxErrors}, {"max_refused", c.MaxRefused}, {"max_unknown", c.MaxUnknown},
		{"max_inline_per_client", c.MaxInlinePerClient},
	} {
		if n.n < 1 {
			faults.add(n.key, "must be at least 1")
		}
	}
	for _, d := range []struct {
		key      string
		d, least time.Duration
	}{
		{"command_timeout", c.CommandTimeout, time.Second}, {"content_window", c.ContentWindow, time.Second},
		{"shutdown_grace", c.ShutdownGrace, 0}, {"tarpit", c.Tarpit, 0}, {"pregreet.wait", c.Pregreet.Wait, 0},
	} {
		if d.d < d.least {
			faults.add(d.key, "must be at least %s", d.least)
		}
	}
	if c.ContentFloor < 0 {
		faults.add("content_floor", "must not be negative")
	}
}

func (a *ACME) validate(faults *faults, stateDir string) {
	if !a.Enabled {
		return
	}
	if stateDir == "" {
		faults.add("state_dir", "ACME needs a folder to keep its certificates in")
	}
	if _, _, err := net.SplitHostPort(a.Listen); err != nil {
		faults.add("acme.listen", "want ADDRESS:PORT or :PORT: %v", err)
	}
	if !strings.HasPrefix(a.Directory, "https://") {
		faults.add("acme.directory", "must be a URL that begins with https://")
	}
}

func (l *Listener) validate(faults *faults, key string) {
	if _, ok := systemdName(l.Address); !ok {
		_, port, err := net.SplitHostPort(l.Address)
		if err != nil {
			faults.add(key, "want ADDRESS:PORT, :PORT, systemd or systemd:NAME: %v", err)
		} else if _, err := net.LookupPort("tcp", port); err != nil {
			faults.add(key, "port %q is none: want 0 to 65535, or the name of a service", port)
		}
	}
	for i, k := range l.Hide {
		if !slices.Contains(keywords, strings.ToUpper(k)) {
			faults.add(fmt.Sprintf("%s.hide[%d]", key, i), "%q is none of %s", k, strings.Join(keywords, ", "))
		}
	}
}

// systemdName reads "systemd" and "systemd:NAME".
func systemdName(address string) (name string, ok bool) {
	if address == "systemd" {
		return "", true
	}
	return strings.CutPrefix(address, "systemd:")
}

func isPrintableASCII(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}
