package forwarder

import (
	"errors"
	"time"

	"understudy/internal/mta"
	"understudy/internal/smtpc"
)

// plan is what follows from one try of a delivery.
type plan struct {
	results []mta.RcptResult
	steps   []smtpc.Step // at which the primary said each result; none: it did not
	next    time.Time    // of what stays deferred; zero: at once
	release bool         // no attempt was made of it: back to the queue, not before next
	alert   string       // what an operator should know, beside the results
}

// step is where the primary said the i-th result.
func (p *plan) step(i int) smtpc.Step {
	if i < len(p.steps) {
		return p.steps[i]
	}
	return smtpc.StepNone
}

// try is what is known of one try.
type try struct {
	lease   *mta.Lease
	primary string
	result  smtpc.Result
	// identified tells that the primary took the true client for the one it talks to, so that MAIL was judged by its rules.
	identified bool
	expire     time.Duration // how old the message may become
	suspects   int           // sessions that ended while they were busy with this very message, this one included
	now        time.Time
	jitter     float64
}

// decide tells what becomes of a delivery after a try. It is all of the forwarder's judgement in one place.
func (c *Config) decide(t try) plan {
	switch t.result.Fate {
	case smtpc.Answered:
		return c.answered(t)
	case smtpc.Unsendable:
		return c.unsendable(t)
	}
	p := plan{release: true}
	if t.suspects > 1 { // once is the host's trouble; twice, the message is kept away from the others
		p.next = t.now.Add(backoff(t.suspects-1, c.RetryMin, c.RetryMax, t.jitter))
	}
	return p
}

// answered takes each recipient's reply for what it is.
func (c *Config) answered(t try) plan {
	var p plan
	delivered, tooMany, deferred := false, false, false
	var grey time.Duration
	for i, a := range t.result.Rcpts {
		out, alert := outcome(a, t.identified)
		if alert {
			p.alert = "refused for good before any recipient was named, which no message is returned for"
		}
		switch out {
		case mta.Delivered:
			delivered = true
		case mta.Deferred:
			deferred = true
			grey = max(grey, greyWait(a.Reply))
			tooMany = tooMany || a.Step == smtpc.StepRCPT && (a.Reply.Code == 452 || a.Reply.Code == 552)
		}
		p.results = append(p.results, mta.RcptResult{N: t.lease.Rcpts[i].N, Outcome: out, Reply: a.Reply, Primary: t.primary})
		p.steps = append(p.steps, a.Step)
	}
	if !deferred {
		return p
	}
	p.next = t.now.Add(backoff(t.lease.Attempts+1, c.RetryMin, c.RetryMax, t.jitter))
	if delivered && tooMany { // RFC 5321, 4.5.3.1.10: the rest goes in another transaction
		p.next = time.Time{}
	}
	if grey > 0 {
		p.next = t.now.Add(min(max(grey, c.RetryMin), c.RetryMax))
	}
	return c.expired(t, p)
}

// expired ends what has waited too long, and was tried once more in vain.
func (c *Config) expired(t try, p plan) plan {
	if t.expire <= 0 || t.now.Sub(t.lease.Envelope.Received) < t.expire {
		return p
	}
	for i := range p.results {
		if r := &p.results[i]; r.Outcome == mta.Deferred {
			r.Outcome, r.Reply = mta.Quarantined, expiredReply(t.expire, r.Reply)
			p.steps[i] = smtpc.StepNone
		}
	}
	p.alert = "expired"
	return p
}

// expiredReply says that a message was not delivered in time, and what the primary said last.
func expiredReply(after time.Duration, last mta.Reply) mta.Reply {
	text := "not delivered within " + after.String()
	if last.Code != 0 {
		text += "; the last reply was: " + last.String()
	}
	return *mta.NewReply(554, "5.4.7", "%s", text)
}

// outcome is what one reply means for its recipient; alert tells that it was none of the recipient's fault.
func outcome(a smtpc.Answer, identified bool) (o mta.Outcome, alert bool) {
	switch {
	case a.Step == smtpc.StepFinal && a.Reply.Code/100 == 2:
		return mta.Delivered, false
	case !a.Reply.Permanent():
		return mta.Deferred, false
	case a.Reply.Code >= 500 && a.Reply.Code <= 504: // it did not understand us; 504 is a parameter that it does not know
		return mta.Deferred, true
	case a.Step == smtpc.StepMAIL && a.Reply.Code == 552: // too big: the message's own
		return mta.Quarantined, false
	case a.Step == smtpc.StepMAIL && !identified: // on our own session this is a word about us
		return mta.Deferred, true
	case a.Step == smtpc.StepRCPT && a.Reply.Code == 552 && (a.Reply.Enhanced == "" || a.Reply.Enhanced == "5.5.3"):
		return mta.Deferred, false // too many recipients, in the words of old servers (RFC 5321, 4.5.3.1.10)
	}
	return mta.Quarantined, false
}

// unsendable keeps what this primary can't take where an operator sees it. What another primary, or the same one mended,
// could take waits; the rest is held.
func (c *Config) unsendable(t try) plan {
	err := t.result.Err
	local := func(o mta.Outcome, code int, enhanced string) plan {
		p := plan{alert: "the primary can't take the message as it is"}
		for _, r := range t.lease.Rcpts {
			p.results = append(p.results, mta.RcptResult{N: r.N, Outcome: o, Reply: *mta.NewReply(code, enhanced, "%s", err), Primary: t.primary})
		}
		if o == mta.Deferred {
			p.next = t.now.Add(backoff(t.lease.Attempts+1, c.RetryMin, c.RetryMax, t.jitter))
		}
		return p
	}
	switch {
	case errors.Is(err, smtpc.ErrNeedsUTF8):
		return local(mta.Deferred, 450, "4.6.7")
	case errors.Is(err, smtpc.ErrNeeds8Bit):
		return local(mta.Deferred, 450, "4.6.3")
	case errors.Is(err, smtpc.ErrNeedsRequireTLS):
		return local(mta.Quarantined, 550, "5.7.30")
	case errors.Is(err, smtpc.ErrTooBig):
		return local(mta.Quarantined, 552, "5.3.4")
	case errors.Is(err, smtpc.ErrUnsafe):
		return local(mta.Quarantined, 553, "5.1.3")
	case errors.Is(err, smtpc.ErrBare):
		return local(mta.Quarantined, 554, "5.6.0")
	}
	// It could not be read. The spool holds what is damaged; what was a fault of the moment comes back.
	return plan{release: true, next: t.now.Add(c.RetryMin), alert: "the content can't be read"}
}
