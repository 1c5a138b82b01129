package smtpc

import (
	"fmt"
	"net/netip"
	"time"

	"understudy/internal/mta"
)

// Step is a point in a session, in the order in which they come.
type Step uint8

const (
	StepNone     Step = iota
	StepLookup        // addresses of the host
	StepDial          // TCP
	StepBanner        // 220
	StepEHLO          // EHLO, HELO or LHLO
	StepSTARTTLS      // the command and the handshake
	StepXCLIENT       // telling who the true client was
	StepRSET
	StepMAIL
	StepRCPT
	StepDATA  // 354
	StepBody  // content on its way
	StepFinal // content sent, its reply awaited
	StepQUIT
)

var stepNames = [...]string{"none", "lookup", "dial", "banner", "ehlo", "starttls", "xclient", "rset", "mail", "rcpt", "data", "body", "final", "quit"}

func (s Step) String() string {
	if int(s) < len(stepNames) {
		return stepNames[s]
	}
	return fmt.Sprintf("step %d", uint8(s))
}

// MarshalText implements encoding.TextMarshaler.
func (s Step) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Step) UnmarshalText(b []byte) error {
	for i, n := range stepNames {
		if n == string(b) {
			*s = Step(i)
			return nil
		}
	}
	return fmt.Errorf("step %q is unknown", b)
}

// StepFact is what one step of a session brought, for people and probes.
type StepFact struct {
	Step  Step
	Addr  netip.AddrPort // the address that it was tried at; zero for StepLookup
	Took  time.Duration
	Reply mta.Reply // Code 0: none came
	Err   error     // why the step failed, where the reply does not say it
}

// Error says at which step a session failed. Reply is what the primary answered, nil where it was silent; it is on
// purpose not part of the error chain.
type Error struct {
	Step  Step
	Addr  netip.AddrPort
	Reply *mta.Reply
	Err   error
	Trace []StepFact // all steps of the attempt, this one last; set by Dial
}

func (e *Error) Error() string {
	s := "smtpc: " + e.Step.String()
	if e.Addr.IsValid() {
		s += " at " + e.Addr.String()
	}
	if e.Reply != nil {
		s += ": " + e.Reply.String()
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap gives the cause below SMTP: a net.Error, a context's error, ErrGarbage and the like.
func (e *Error) Unwrap() error { return e.Err }

// Permanent reports a 5yz reply.
func (e *Error) Permanent() bool { return e.Reply != nil && e.Reply.Permanent() }
