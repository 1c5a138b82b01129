package admin

import (
	"net"

	"understudy/internal/mta"
)

// Config says where the admin API listens.
type Config struct {
	// Socket is the path of the unix socket, mode 0600. Who may open it may do everything.
	Socket string `yaml:"socket"`
	// Listen is a TCP address ("127.0.0.1:8025") for the same API; empty is off. It needs token_file.
	Listen string `yaml:"listen"`
	// TokenFile holds the bearer token that TCP clients must present, at least 16 characters.
	TokenFile string `yaml:"token_file"`
	// HintTokenFile holds a second token, good for POST /v1/domains/{domain}/recovered alone: for a script on the
	// primary that tells us that it is back. Such a hint brings a probe, nothing else. Empty: there is none.
	HintTokenFile string `yaml:"hint_token_file"`
}

// DefaultConfig is the socket alone.
func DefaultConfig() Config {
	return Config{Socket: "/run/understudy/admin.sock"}
}

// maxSocketPath is what fits a sockaddr_un on Linux.
const maxSocketPath = 107

// Validate reports all faults.
func (c *Config) Validate() []mta.Fault {
	var faults []mta.Fault
	if c.Socket == "" {
		faults = append(faults, mta.NewFault("socket", "a path is needed: the command line talks to it"))
	}
	if len(c.Socket) > maxSocketPath {
		faults = append(faults, mta.NewFault("socket", "the path has %d octets, a unix socket takes %d", len(c.Socket), maxSocketPath))
	}
	if c.Listen != "" {
		if _, _, err := net.SplitHostPort(c.Listen); err != nil {
			faults = append(faults, mta.NewFault("listen", "%q is not host:port", c.Listen))
		}
		if c.TokenFile == "" {
			faults = append(faults, mta.NewFault("token_file", "TCP needs a token"))
		}
	}
	return faults
}
