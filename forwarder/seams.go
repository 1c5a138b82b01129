package forwarder

import (
	"context"
	"io"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"understudy/internal/mta"
	"understudy/internal/smtpc"
)

// Queue is what waits. An error of any method is a fault of the moment: it is logged, and tried again.
type Queue interface {
	// Claim leases due deliveries of one destination, oldest first.
	Claim(ctx context.Context, r mta.ClaimRequest) ([]mta.Lease, error)
	// Extend moves the end of a lease to d from now.
	Extend(ctx context.Context, r mta.LeaseRef, d time.Duration) (time.Time, error)
	// Settle stores results, each settlement whole or not at all, and gives an error for each.
	Settle(ctx context.Context, s ...mta.Settlement) []error
	// Release gives leases back without an attempt; they are due at notBefore, or when they were due if that is later.
	Release(ctx context.Context, notBefore time.Time, r ...mta.LeaseRef) error
	// Body opens the content; damage is reported before io.EOF.
	Body(ctx context.Context, id mta.ID) (io.ReadCloser, error)
	// DueDests lists the destinations that Claim would find something for.
	DueDests(ctx context.Context, ignoreDue bool) ([]string, error)
	// NextDue is when something becomes due next; zero if nothing waits.
	NextDue(ctx context.Context) (time.Time, error)
	// Watch gives the names of destinations that have something new. Names may be lost.
	Watch(ctx context.Context) (<-chan string, error)
}

// Routes says where a domain's mail goes.
type Routes interface {
	Route(ctx context.Context, domain string) (mta.Route, error)
}

// Health says which primaries take mail, and hears what became of it.
type Health interface {
	Open(primary string) bool
	Changed() <-chan struct{} // closed at the next change of any primary's state or any route
	Observe(primary string, err error)
}

// Ended is what became of one recipient in one try.
type Ended struct {
	Envelope *mta.Envelope
	Rcpt     mta.Recipient
	// Outcome is where the recipient stands now. Deferred with a 5yz reply is a refusal that was not believed: of a primary
	// that refused far too much, or one that was not about the recipient.
	Outcome mta.Outcome
	Reply   mta.Reply
	// Step is where the primary said it: StepMAIL, StepRCPT, StepDATA or StepFinal, which is about content. StepNone: the
	// primary did not; the message expired, can't be sent there, or was held by Hindsight.
	Step      smtpc.Step
	Hindsight *mta.Verdict // what Hindsight said before it was sent; nil: it was not asked
}

// Deps are what the forwarder works with. Queue, Routes, Health, Dialer and Log are required.
type Deps struct {
	Queue   Queue
	Routes  Routes
	Health  Health
	Dialer  *smtpc.Dialer
	Log     *slog.Logger
	Metrics prometheus.Registerer
	// LeaseLost is in the chain of what Settle says when someone else has the delivery by now: trying again is of no use.
	LeaseLost error
	// Ended hears of each recipient's end or deferral, once it was stored; nil: nobody. It must not wait.
	Ended func(Ended)
	// Hindsight judges once more what has waited longer than HindsightAfter, before it is sent: what is to be rejected or
	// quarantined is held where an operator sees it; whatever else it says, an error too, the message goes. The content is not
	// to be used after it returned. nil, or no time: nobody is asked. What an operator has released is not judged again.
	Hindsight      func(ctx context.Context, env *mta.Envelope, c mta.Content) (*mta.Verdict, error)
	HindsightAfter func() time.Duration
	// Events tells the operator; nil: nobody. It must not wait.
	Events func(mta.Event)
	// STS knows MTA-STS policies, for domains that want them.
	STS *STS
	// Proof tells what was found out about a message when it came. Without it no report is ever sent.
	Proof func(env *mta.Envelope) Proof
}
