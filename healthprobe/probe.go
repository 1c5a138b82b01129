package healthprobe

import (
	"context"
	"crypto/tls"
	"errors"
	"net/netip"
	"strings"
	"time"

	"understudy/internal/mta"
	"understudy/internal/smtpc"
)

// Fact is one step of a probe.
type Fact struct {
	Step  string         `json:"step"`
	Addr  netip.AddrPort `json:"addr,omitzero"`
	Took  time.Duration  `json:"took"` // nanoseconds
	Reply mta.Reply      `json:"reply,omitzero"`
	Err   string         `json:"err,omitempty"`
}

// TLSFacts is what STARTTLS showed. The certificate is looked at, not trusted: opportunistic TLS takes any.
type TLSFacts struct {
	Version  string    `json:"version"`
	Cipher   string    `json:"cipher"`
	Subject  string    `json:"subject,omitempty"`
	Issuer   string    `json:"issuer,omitempty"`
	Names    []string  `json:"names,omitempty"`
	NotAfter time.Time `json:"not_after,omitzero"`
	Matches  bool      `json:"matches"` // the certificate is for the primary's name
}

// Probe is the report of one probe.
type Probe struct {
	At    time.Time     `json:"at"`
	Took  time.Duration `json:"took"` // nanoseconds
	OK    bool          `json:"ok"`
	Step  string        `json:"step,omitempty"` // where it ended, if not OK
	Why   string        `json:"why,omitempty"`  // why, in words
	Note  string        `json:"note,omitempty"` // what is odd, though it takes mail
	Facts []Fact        `json:"facts"`
	TLS   *TLSFacts     `json:"tls,omitempty"`
	Caps  []string      `json:"caps,omitempty"` // what its EHLO offered

	caps   smtpc.Caps
	err    error
	result result
	ours   bool // our own trouble: it says nothing about the primary
	knows  bool // the recipient was accepted
}

// target is what one probe needs to know.
type target struct {
	primary  mta.Primary
	to       mta.Path // whom to name at RCPT
	knows    bool     // it has been away, and knew to before
	depth    smtpc.Step
	hostname string
	timeout  time.Duration
	options  smtpc.Options // as a delivery would have them
}

// probe talks to a primary as a delivery would, and sends nothing.
func probe(ctx context.Context, d *smtpc.Dialer, t target) Probe {
	ctx, cancel := context.WithTimeout(ctx, t.timeout)
	defer cancel()
	p := Probe{At: time.Now()}
	t.options.Stop, t.options.Client = dialDepth(t.depth), nil
	c, err := d.DialWith(ctx, t.primary, t.options)
	if err != nil {
		if e, ok := errors.AsType[*smtpc.Error](err); ok {
			p.Facts = facts(e.Trace)
		}
		return p.end(err)
	}
	defer c.Close()
	err = p.transact(ctx, c, t)
	if err == nil && t.depth > smtpc.StepDial {
		c.Quit(ctx) // courtesy: what we wanted to know we know
	}
	p.Facts = facts(c.Trace())
	if t.depth >= smtpc.StepEHLO {
		p.caps = c.Caps()
		p.Caps = p.caps.Lines
	}
	p.TLS = tlsFacts(c.TLS(), t.primary.Host)
	if e := c.TLSError(); e != nil {
		p.Note = "STARTTLS failed, mail goes in clear: " + e.Error()
	}
	return p.end(err)
}

func dialDepth(depth smtpc.Step) smtpc.Step {
	if depth > smtpc.StepSTARTTLS {
		return smtpc.StepNone
	}
	return depth
}

// transact goes on where Dial ends: a transaction that is taken back before DATA.
func (p *Probe) transact(ctx context.Context, c *smtpc.Conn, t target) error {
	if t.depth >= smtpc.StepEHLO && strings.EqualFold(c.Caps().Name, t.hostname) {
		return &smtpc.Error{Step: smtpc.StepEHLO, Addr: c.Addr(), Err: errOurselves}
	}
	if t.depth < smtpc.StepMAIL {
		return nil
	}
	if _, err := c.Mail(ctx, mta.Path{}); err != nil {
		return err
	}
	if t.depth >= smtpc.StepRCPT {
		if r, err := c.Rcpt(ctx, t.to); err != nil {
			// A server that is back without its users would refuse everything for good (a restore in progress).
			if !noPostmaster(r) || t.knows {
				return err
			}
			p.Note = "it does not know " + t.to.String() + " (RFC 5321, 4.5.1)"
		}
		p.knows = p.Note == ""
	}
	_, err := c.Reset(ctx)
	return err
}

func (p Probe) end(err error) Probe {
	p.Took = time.Since(p.At)
	p.err = err
	p.OK = err == nil
	p.result, p.ours = judge(err)
	if err != nil {
		p.Step, p.Why = stepOf(err).String(), words(err)
	}
	return p
}

func facts(trace []smtpc.StepFact) []Fact {
	fs := make([]Fact, 0, len(trace))
	for _, s := range trace {
		f := Fact{Step: s.Step.String(), Addr: s.Addr, Took: s.Took, Reply: s.Reply}
		if s.Err != nil {
			f.Err = words(s.Err)
		}
		fs = append(fs, f)
	}
	return fs
}

func tlsFacts(cs *tls.ConnectionState, host string) *TLSFacts {
	if cs == nil {
		return nil
	}
	f := &TLSFacts{Version: tls.VersionName(cs.Version), Cipher: tls.CipherSuiteName(cs.CipherSuite)}
	if len(cs.PeerCertificates) > 0 {
		leaf := cs.PeerCertificates[0]
		f.Subject, f.Issuer = leaf.Subject.String(), leaf.Issuer.String()
		f.Names, f.NotAfter = leaf.DNSNames, leaf.NotAfter
		f.Matches = leaf.VerifyHostname(host) == nil
	}
	return f
}
