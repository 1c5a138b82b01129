package spool

import (
	"fmt"
	"time"

	"understudy/internal/mta"
)

// progress is how far a message has come. It is stored only once something differs from the beginning; rev rises with
// every change, so that of two copies the later one is known.
type progress struct {
	rev     uint32
	damaged bool           // the content could not be read back: held, whatever its recipients say
	dests   []destProgress // in the order of Envelope.Dests
	rcpts   []rcptProgress // in the order of Envelope.Rcpts
}

type destProgress struct {
	dest     string // from the envelope, not stored
	due      time.Time
	attempts uint32
	held     bool // by an operator
	released bool // an operator gave back to the queue what was quarantined
}

type rcptProgress struct {
	outcome mta.Outcome
	reply   mta.Reply
	primary string
	at      time.Time
}

// begin is the progress of a message that was just received.
func begin(env *mta.Envelope) *progress {
	dests := env.Dests()
	p := &progress{dests: make([]destProgress, len(dests)), rcpts: make([]rcptProgress, len(env.Rcpts))}
	for i, d := range dests {
		p.dests[i] = destProgress{dest: d, due: env.Due}
	}
	return p
}

// arrive is the progress of a message at its receipt; nil if that is its beginning. What our own verdict quarantines is
// held from the first moment on, and the reply that its sender was spared is the reason.
func arrive(env *mta.Envelope, now time.Time) *progress {
	if env.Verdict == nil || env.Verdict.Action != mta.Quarantine {
		return nil
	}
	refusal := mta.Verdict{Action: mta.Reject, Findings: env.Verdict.Findings}
	p := begin(env)
	p.rev = 1
	for i := range p.rcpts {
		p.rcpts[i] = rcptProgress{outcome: mta.Quarantined, reply: *refusal.Reply(), at: now}
	}
	return p
}

// held reports that nothing of the message is to be tried.
func (p *progress) held(env *mta.Envelope) bool {
	for i := range p.dests {
		if s := p.standing(env, &p.dests[i]); s.open > 0 && !s.held {
			return false
		}
	}
	return true
}

func (p *progress) dest(name string) *destProgress {
	for i := range p.dests {
		if p.dests[i].dest == name {
			return &p.dests[i]
		}
	}
	return nil
}

// standing is what follows for a delivery from its recipients.
type standing struct {
	open     int  // recipients that have not ended
	deferred int  // of these, waiting for a try
	held     bool // only an operator moves it
	reason   mta.Reply
}

func (p *progress) standing(env *mta.Envelope, d *destProgress) standing {
	var s standing
	var last time.Time
	for i := range env.Rcpts {
		if env.Rcpts[i].Dest != d.dest {
			continue
		}
		r := &p.rcpts[i]
		if r.outcome.Ended() {
			continue
		}
		s.open++
		if r.outcome == mta.Deferred {
			s.deferred++
		}
		if r.reply.Code != 0 && !r.at.Before(last) {
			s.reason, last = r.reply, r.at
		}
	}
	s.held = s.open > 0 && (p.damaged || d.held || s.deferred == 0)
	if p.damaged {
		s.reason = mta.Reply{Code: 451, Enhanced: "4.3.0", Text: "the stored content is damaged"}
	}
	return s
}

// ended reports whether nothing is left to do for the whole message.
func (p *progress) ended() bool {
	for i := range p.rcpts {
		if !p.rcpts[i].outcome.Ended() {
			return false
		}
	}
	return true
}

// statuses lists the recipients of a destination; with only, those alone that are deferred.
func (p *progress) statuses(env *mta.Envelope, dest string, deferred bool) []mta.RcptStatus {
	var list []mta.RcptStatus
	for i := range env.Rcpts {
		r := &p.rcpts[i]
		if env.Rcpts[i].Dest != dest || deferred && r.outcome != mta.Deferred {
			continue
		}
		list = append(list, mta.RcptStatus{N: i, Recipient: env.Rcpts[i], Outcome: r.outcome, Reply: r.reply, Primary: r.primary, At: r.at})
	}
	return list
}

// settle applies the results of one try at dest.
func (p *progress) settle(env *mta.Envelope, dest string, s *mta.Settlement, now time.Time) error {
	d := p.dest(dest)
	if d == nil {
		return ErrNotFound
	}
	replied := false
	for i := range s.Results {
		r := &s.Results[i]
		if r.N < 0 || r.N >= len(env.Rcpts) || env.Rcpts[r.N].Dest != dest {
			return fmt.Errorf("result for recipient %d, who is not at %s", r.N, dest)
		}
		if p.rcpts[r.N].outcome.Ended() {
			continue // what ended stays ended
		}
		p.rcpts[r.N] = rcptProgress{outcome: r.Outcome, reply: r.Reply, primary: r.Primary, at: now}
		replied = replied || r.Reply.Code != 0
	}
	if replied {
		d.attempts++
	}
	d.due = s.NextDue
	p.rev++
	return nil
}

// apply does what an operator asked for and reports whether anything changed.
func (p *progress) apply(env *mta.Envelope, dest string, op Op, due, now time.Time) bool {
	d := p.dest(dest)
	if d == nil || p.standing(env, d).open == 0 {
		return false
	}
	switch op {
	case Hold:
		if d.held {
			return false
		}
		d.held = true
	case Unhold:
		if !p.standing(env, d).held {
			return false
		}
		d.held, p.damaged, d.due = false, false, due
		p.each(env, dest, func(r *rcptProgress) {
			if r.outcome == mta.Quarantined {
				r.outcome, d.released = mta.Deferred, true
			}
		})
	case Reschedule:
		d.due = due
	case Delete:
		p.each(env, dest, func(r *rcptProgress) {
			if !r.outcome.Ended() {
				r.outcome, r.at = mta.Dropped, now
			}
		})
	default:
		return false
	}
	p.rev++
	return true
}

func (p *progress) each(env *mta.Envelope, dest string, f func(r *rcptProgress)) {
	for i := range env.Rcpts {
		if env.Rcpts[i].Dest == dest {
			f(&p.rcpts[i])
		}
	}
}

// Bits of the stored flags.
const (
	flagDamaged  = 1
	flagHeld     = 1
	flagReleased = 2
)

// Of the text of replies so much is kept, for one recipient and for all of a message: a primary's novel must not fill
// the disk, and all of it has to fit into one commit.
const (
	maxReplyText  = 1024
	maxReplyTexts = 128 << 10
)

func (p *progress) encode() []byte {
	text := min(maxReplyText, maxReplyTexts/max(1, len(p.rcpts)))
	e := make(enc, 0, 16+16*len(p.dests)+64*len(p.rcpts))
	e.byte(progressVersion)
	e.uint(uint64(p.rev))
	e.byte(flagIf(p.damaged, flagDamaged))
	e.uint(uint64(len(p.dests)))
	for i := range p.dests {
		d := &p.dests[i]
		e.byte(flagIf(d.held, flagHeld) | flagIf(d.released, flagReleased))
		e.time(d.due)
		e.uint(uint64(d.attempts))
	}
	e.uint(uint64(len(p.rcpts)))
	for i := range p.rcpts {
		r := &p.rcpts[i]
		e.byte(byte(r.outcome))
		e.reply(&r.reply, text)
		e.string(clip(r.primary, 300))
		e.time(r.at)
	}
	return e
}

func flagIf(on bool, flag byte) byte {
	if on {
		return flag
	}
	return 0
}

// decodeProgress reads the progress of env's message.
func decodeProgress(b []byte, env *mta.Envelope) (*progress, error) {
	p := begin(env)
	d := dec{b: b}
	d.version(progressVersion)
	p.rev = uint32(d.uint())
	p.damaged = d.byte()&flagDamaged != 0
	if n := d.count(); d.err == nil && n != len(p.dests) {
		d.fail(fmt.Errorf("%d destinations, the envelope has %d", n, len(p.dests)))
	}
	for i := range p.dests {
		flags := d.byte()
		p.dests[i].held, p.dests[i].released = flags&flagHeld != 0, flags&flagReleased != 0
		p.dests[i].due = d.time()
		p.dests[i].attempts = uint32(d.uint())
	}
	if n := d.count(); d.err == nil && n != len(p.rcpts) {
		d.fail(fmt.Errorf("%d recipients, the envelope has %d", n, len(p.rcpts)))
	}
	for i := range p.rcpts {
		r := &p.rcpts[i]
		r.outcome = mta.Outcome(d.byte())
		if r.outcome > mta.Dropped {
			d.fail(fmt.Errorf("outcome %d is unknown", r.outcome))
		}
		r.reply = d.reply()
		r.primary = d.string()
		r.at = d.time()
	}
	if d.err != nil {
		return nil, fmt.Errorf("progress record: %w", d.err)
	}
	return p, nil
}
