package forwarder

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"time"

	"understudy/internal/mta"
	"understudy/internal/smtpc"
)

// ErrInDoubt is in the chain when the whole content was written and the primary's reply to it is not known: it may have
// taken the message.
var ErrInDoubt = errors.New("the primary may have taken the message")

// Inline is one message's transaction with a primary while the sender waits. It is used by one goroutine at a time, and
// ended by Send or Abort.
//
// An error of its methods is one of three: a *mta.Reply in the chain is the sender's answer; mta.ErrAway says that no
// primary took anything and the spool may; any other is our own fault, after Send in doubt.
type Inline struct {
	p      *pool
	env    *mta.Envelope
	dest   string
	cfg    Config
	key    string    // of the client
	client *mta.Peer // whom the primary is told of; nil: of nobody
	began  time.Time

	l        *line
	tx       *smtpc.Transaction
	told     bool  // the primary that is tried was, of the client
	answered bool  // a recipient was: what was said before can't be said again unseen
	taken    int   // recipients
	over     error // what every further step gets
	ended    bool

	conn atomic.Pointer[smtpc.Conn] // of l, for the end of the grace
	cut  atomic.Bool
}

// Inline opens a transaction with a primary of dest, over a session that waits or a new one; MAIL goes out with the first
// recipient. The envelope is not changed and not kept after the end. Run must be running.
func (f *Forwarder) Inline(ctx context.Context, env *mta.Envelope, dest string) (*Inline, error) {
	p, err := f.pools.of(ctx, dest)
	if err != nil {
		f.m.inline.transactions.WithLabelValues("away").Inc()
		return nil, err
	}
	if !f.pools.begin() {
		return nil, stopping
	}
	i := &Inline{p: p, env: env, dest: dest, cfg: f.config(), began: time.Now()}
	if err := p.enter(ctx, &i.cfg.Inline); err != nil {
		f.pools.end()
		if err == crowded {
			f.m.inline.transactions.WithLabelValues("exhausted").Inc()
			return nil, crowded
		}
		return nil, fmt.Errorf("forwarder: inline for %s: %w", dest, err)
	}
	f.m.inline.wait.Observe(time.Since(i.began).Seconds())
	p.mu.Lock()
	p.busy[i] = ""
	p.mu.Unlock()
	i.key, i.client = p.identity(env)
	if err := i.find(ctx, false); err != nil {
		i.end(outcomeOf(err))
		return nil, err
	}
	return i, nil
}

// outcomeOf names an error for the metrics.
func outcomeOf(err error) string {
	r, ok := errors.AsType[*mta.Reply](err)
	switch {
	case errors.Is(err, mta.ErrAway):
		return "away"
	case errors.Is(err, ErrInDoubt):
		return "in_doubt"
	case ok && r.Permanent():
		return "refused"
	case ok:
		return "deferred"
	}
	return "fault"
}

// find takes a session that can carry the message, with the best primary that is open. fresh: only a new one will do.
func (i *Inline) find(ctx context.Context, fresh bool) error {
	p := i.p
	asked := true // every primary
	var unfit, last error
	var busy *mta.Reply
	for _, tier := range p.tiers {
		list, all := p.candidates(tier, i.key)
		asked = asked && all
		for _, to := range list {
			begun := time.Now()
			l, err := i.line(ctx, to, fresh)
			if err == nil {
				if err = i.use(l); err == nil {
					return nil
				}
				unfit = err
				p.rest(l, &i.cfg)
				continue
			}
			asked = false
			e, hosts := errors.AsType[*smtpc.Error](err)
			switch {
			case ctx.Err() != nil:
				return fmt.Errorf("forwarder: inline for %s: %w", i.dest, context.Cause(ctx))
			case !hosts:
				p.f.fault(ctx, "inline for "+i.dest, err)
				return err
			case e.Reply != nil && errors.Is(err, smtpc.ErrClient) && aboutClient(e.Reply, true):
				return i.turnedAway(e)
			case e.Reply != nil && e.Reply.Code == 421 && aboutClient(e.Reply, p.serving(to.String(), i)):
				busy = unclosed(e.Reply)
			default:
				knew := i.told || p.proxies() && i.client != nil && e.Step > smtpc.StepDial
				p.unreachable(to.String(), err, knew, begun)
				last = err
			}
			p.f.log.LogAttrs(ctx, slog.LevelWarn, "inline session failed", slog.String("primary", to.String()), slog.String("step", e.Step.String()), slog.Any("err", err))
		}
	}
	switch {
	case unfit != nil:
		return unfitReply(unfit, asked)
	case busy != nil:
		return busy
	}
	return awayFrom(i.dest, last)
}

// line gives a session with a primary, which knows by then who the client is.
func (i *Inline) line(ctx context.Context, to mta.Primary, fresh bool) (*line, error) {
	p := i.p
	for !fresh {
		l := p.take(to.String(), i.key)
		if l == nil {
			break
		}
		err := i.identify(ctx, l)
		if err == nil {
			p.f.m.inline.reused.Inc()
			return l, nil
		}
		e, _ := errors.AsType[*smtpc.Error](err)
		if errors.Is(err, smtpc.ErrClient) && e.Reply.Code != 421 || ctx.Err() != nil {
			return nil, err
		}
		if t, ok := errors.AsType[net.Error](err); ok && t.Timeout() {
			break // silent: to us, or to this client, and then the others that wait must not be spent on it
		}
		// the primary had enough of it: another
	}
	i.told = false
	l, err := p.dial(ctx, to, i.client, i.key)
	if err == nil {
		err = i.identify(ctx, l)
	}
	if err != nil {
		return nil, err
	}
	return l, nil
}

// identify makes the session the client's own, where the primary can be told of it.
func (i *Inline) identify(ctx context.Context, l *line) error {
	if i.client == nil || l.key != "" || len(l.conn.Caps().XCLIENT) == 0 {
		return nil
	}
	i.told = true
	if err := l.conn.Identify(ctx, i.client); err != nil {
		l.conn.Close()
		return err
	}
	switch err := l.conn.ClientError(); {
	case err != nil: // what it was told before may stick to the session
		l.key = i.key
		i.p.f.log.LogAttrs(ctx, slog.LevelWarn, "true client refused", slog.String("primary", l.primary), slog.String("peer", i.client.Addr.String()), slog.Any("err", err))
	case l.conn.Identified():
		l.key = i.key
	}
	return nil
}

// use begins the transaction on a session.
func (i *Inline) use(l *line) error {
	tx, err := l.conn.Begin(i.env.From, i.env.Params, -1)
	if err != nil {
		return err
	}
	l.used++
	i.l, i.tx = l, tx
	i.p.mu.Lock()
	i.p.busy[i] = l.primary
	i.p.mu.Unlock()
	i.conn.Store(l.conn)
	if i.cut.Load() {
		l.conn.Close()
	}
	return nil
}

// aboutClient tells whether a reply that ends a session, or keeps it from beginning, is about who is served and not about
// the primary. To go on without the primary then would be to get around it. known: there is another sign of that, the
// primary knew the client, or serves others of our sessions.
func aboutClient(r *mta.Reply, known bool) bool {
	if r.Code != 421 {
		return known
	}
	return strings.HasPrefix(r.Enhanced, "4.7.") || known && !strings.HasPrefix(r.Enhanced, "4.3.")
}

// unclosed is a primary's 421 in words that don't end the sender's session with us.
func unclosed(r *mta.Reply) *mta.Reply {
	if r.Code != 421 {
		return r
	}
	return &mta.Reply{Code: 451, Enhanced: r.Enhanced, Text: r.Text}
}

// turnedAway is the answer to a client that the primary wants nothing of.
func (i *Inline) turnedAway(e *smtpc.Error) error {
	i.log(slog.LevelInfo, "inline client turned away", slog.String("reply", e.Reply.String()), slog.String("step", e.Step.String()))
	return unclosed(e.Reply)
}

// Rcpt names a recipient and gives the primary's reply, whatever its class.
func (i *Inline) Rcpt(ctx context.Context, r mta.Recipient) (mta.Reply, error) {
	if i.over != nil {
		return mta.Reply{}, i.over
	}
	if i.p.dom.LMTP && i.taken > 0 { // each has a reply of his own to the content, and the sender can be told one
		return mta.Reply{}, mta.NewReply(452, "4.5.3", "one recipient at a time, please")
	}
	began := time.Now()
	a, err := i.tx.Rcpt(ctx, &r)
	if lost(err) && i.l.rested && !i.answered && ctx.Err() == nil {
		i.log(slog.LevelDebug, "inline session replaced", slog.Any("err", err))
		if err := i.find(ctx, true); err != nil {
			return mta.Reply{}, i.stop(err)
		}
		a, err = i.tx.Rcpt(ctx, &r)
	}
	switch {
	case lost(err):
		return mta.Reply{}, i.lose(ctx, err)
	case err != nil:
		return mta.Reply{}, unfitReply(err, true)
	case a.Step == smtpc.StepMAIL:
		return mta.Reply{}, i.stop(i.mailRefused(a.Reply))
	}
	if !i.answered && i.p.all.tookMail(i.l.primary) {
		i.p.f.raise(mta.Event{Kind: mta.EventNotDelivered, Subject: i.l.primary, Level: mta.Over, Text: i.l.primary + " takes our MAIL again."})
	}
	i.answered = true
	i.p.hears(i.l.primary)
	if a.Reply.Code/100 == 2 {
		i.taken++
	}
	i.p.f.m.inline.seconds.WithLabelValues("rcpt").Observe(time.Since(began).Seconds())
	return a.Reply, nil
}

// lost reports an error that ended the session.
func lost(err error) bool {
	_, ok := errors.AsType[*smtpc.Error](err)
	return ok
}

// stop ends the transaction for an error, which it returns.
func (i *Inline) stop(err error) error {
	i.over = err
	i.end(outcomeOf(err))
	return err
}

// lose ends the transaction for a session that was lost before the primary could have taken anything.
func (i *Inline) lose(ctx context.Context, err error) error {
	e, _ := errors.AsType[*smtpc.Error](err)
	switch {
	case i.cut.Load():
		return i.stop(stopping)
	case ctx.Err() != nil:
		return i.stop(fmt.Errorf("forwarder: inline for %s: %w", i.dest, err))
	case e.Reply != nil && aboutClient(e.Reply, i.l.conn.Identified()):
		return i.stop(unclosed(e.Reply))
	}
	i.p.f.health.Observe(i.l.primary, err)
	i.log(slog.LevelWarn, "inline session lost", slog.String("step", e.Step.String()), slog.Any("err", err))
	return i.stop(awayFrom(i.dest, err))
}

// mailRefused is the sender's answer to a MAIL that the primary did not take. What is said for good is passed on only if
// the primary saw the true client; said of our own session it may be about us.
func (i *Inline) mailRefused(r mta.Reply) error {
	misunderstood := r.Code == 500 || r.Code == 502 || r.Code == 503
	if !r.Permanent() || r.Code == 552 || i.l.conn.Identified() && !misunderstood {
		return &r
	}
	i.log(slog.LevelError, "inline sender refused to us", slog.String("reply", r.String()))
	ofSender := strings.HasPrefix(r.Enhanced, "5.1.") // its address, which anybody can make up
	if name := i.l.primary; !ofSender && i.p.all.refusedUs(name, time.Now()) {
		i.p.f.raise(mta.Event{
			Kind: mta.EventNotDelivered, Subject: name, Level: mta.Alarm,
			Text: fmt.Sprintf("%s refuses MAIL for good and was not told who the client is (%s). Senders are asked to try again; see that it trusts us.", name, r),
		})
	}
	return mta.NewReply(451, "4.3.0", "the recipient's server does not take mail from us now, please try again later")
}

// Send hands the content over and gives the reply to it: the primary's, or ours where it can't take such content. The
// transaction is over then.
func (i *Inline) Send(ctx context.Context, c mta.Content) (mta.Reply, error) {
	if i.over != nil {
		return mta.Reply{}, i.over
	}
	began := time.Now()
	reply, err := i.tx.Send(ctx, c, smtpc.SendOptions{Method: i.l.host.method(began), Final: i.cfg.Inline.FinalTimeout})
	e, failed := errors.AsType[*smtpc.Error](err)
	switch {
	case errors.Is(err, smtpc.ErrNeeds8Bit):
		reply = *unfitReply(smtpc.ErrNeeds8Bit, len(i.p.tiers) == 1 && len(i.p.tiers[0]) == 1)
	case failed && e.Step < smtpc.StepFinal:
		return mta.Reply{}, i.lose(ctx, err)
	case failed:
		return mta.Reply{}, i.doubt(ctx, err)
	case err != nil: // the content can't be read, or is not clean
		return mta.Reply{}, i.stop(fmt.Errorf("forwarder: inline for %s: %w", i.dest, err))
	}
	if reply.Code/100 == 2 {
		i.p.all.took(i.l.primary, time.Now())
	}
	i.p.f.m.inline.seconds.WithLabelValues("content").Observe(time.Since(began).Seconds())
	i.log(slog.LevelDebug, "inline answered", slog.Int64("size", c.Size), slog.Int("code", reply.Code), slog.String("reply", reply.String()),
		slog.Bool("identified", i.l.conn.Identified()), slog.Duration("took", time.Since(i.began)))
	i.over = errors.New("forwarder: inline transaction is over")
	switch reply.Code / 100 {
	case 2:
		i.end("taken")
	case 4:
		i.end("deferred")
	default:
		i.end("refused")
	}
	return reply, nil
}

// doubt ends a transaction whose content was written whole and not answered.
func (i *Inline) doubt(ctx context.Context, err error) error {
	if outOfStep := errors.Is(err, smtpc.ErrOutOfStep) || errors.Is(err, smtpc.ErrGarbage); outOfStep {
		i.l.host.strayed(time.Now(), true)
	}
	if ctx.Err() == nil && !i.cut.Load() {
		i.p.f.health.Observe(i.l.primary, err)
	}
	i.log(slog.LevelWarn, "inline in doubt", slog.Any("err", err), slog.Duration("took", time.Since(i.began)))
	return i.stop(fmt.Errorf("forwarder: inline for %s: %w", i.dest, errors.Join(ErrInDoubt, err)))
}

// log tells of this transaction.
func (i *Inline) log(level slog.Level, event string, more ...slog.Attr) {
	if !i.p.f.log.Enabled(context.Background(), level) {
		return
	}
	attrs := []slog.Attr{slog.String("id", i.env.ID.String()), slog.String("domain", i.dest), slog.String("from", i.env.From.String()), slog.String("peer", i.env.Peer.Addr.String())}
	if i.l != nil {
		attrs = append(attrs, slog.String("primary", i.l.primary))
	}
	i.p.f.log.LogAttrs(context.Background(), level, event, append(attrs, more...)...)
}

// Abort ends the transaction, if it has not ended, and gives its session back. It does not wait for the primary.
func (i *Inline) Abort() {
	if i.over == nil {
		i.over = errors.New("forwarder: inline transaction was aborted")
	}
	i.end("aborted")
}

// end gives back what the transaction holds, once.
func (i *Inline) end(outcome string) {
	if i.ended {
		return
	}
	i.ended = true
	p := i.p
	p.f.m.inline.transactions.WithLabelValues(outcome).Inc()
	p.mu.Lock()
	delete(p.busy, i)
	p.mu.Unlock()
	if i.l != nil {
		i.giveBack()
	}
	p.leave(&i.cfg.Inline)
	p.fill(&i.cfg) // not before: a new session takes time that the sender would wait
	p.all.end()
}

// giveBack lets the session wait for its next transaction, after the primary has forgotten this one.
func (i *Inline) giveBack() {
	p, l, tx, cfg := i.p, i.l, i.tx, i.cfg
	switch {
	case l.conn.Closed():
	case tx.Idle():
		p.rest(l, &cfg)
	default:
		forgets := p.all.beside(func() {
			ctx, cancel := context.WithTimeout(context.Background(), abortLimit)
			defer cancel()
			if tx.Abort(ctx) == nil {
				p.rest(l, &cfg)
			}
		})
		if !forgets {
			l.conn.Close()
		}
	}
}
