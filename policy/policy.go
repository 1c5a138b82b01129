package policy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"understudy/internal/dnsbl"
	"understudy/internal/filter"
	"understudy/internal/mta"
)

// Deps is what the policy needs of the others.
type Deps struct {
	// Log gets every event.
	Log *slog.Logger
	// Metrics is where counters and gauges are registered. nil: nowhere.
	Metrics prometheus.Registerer
	// Events is told of lists that are stale or shrink. nil: nobody is. It must not block.
	Events func(mta.Event)
	// Callout asks the primary of a domain about a recipient: connect, MAIL with the null sender, RCPT, RSET, never
	// content. It returns the reply to RCPT; an error says that there was none. nil: no primary is asked.
	Callout func(ctx context.Context, domain string, to mta.Path) (mta.Reply, error)
	// State keeps what was learned over restarts. nil: it is not kept.
	State State
	// Up tells whether a primary of a domain takes mail now. nil: none does.
	Up func(domain string) bool
	// Fragile tells whether the refusals of a domain's primary are to be doubted: it came back less than AmnesiaWindow
	// ago, or its breaker is open. nil: never.
	Fragile func(domain string) bool
	// Parity is told of our verdict and the primary's reply for the same mail. nil: nobody counts. It must not block.
	Parity func(mta.Pair)
	// Resolver asks the DNS about clients and senders. nil: nobody does, and what needs it is not looked at.
	Resolver Resolver
	// PrimaryNames are the names of a domain's primaries: an Authentication-Results field in such a name is only theirs
	// to write. nil: they are not known.
	PrimaryNames func(domain string) []string
}

// Policy decides about mail. Its methods may be called at any time from any goroutine.
type Policy struct {
	deps    Deps
	log     *slog.Logger
	metrics *metrics
	learned *learned
	limits  *limits
	tuples  *tuples
	doubts  *doubts
	shadows *shadows

	lists    *dnsbl.Lists
	filters  *filter.Set
	greylist *greylist
	judging  atomic.Pointer[judging]

	wake  chan struct{} // something is due earlier than Run knows
	state atomic.Pointer[state]

	mu      sync.Mutex // held while a next state is built; guards what follows
	cfg     Config
	domains map[string]Domain
	files   map[string]*set    // of domains with a recipients file
	sources map[string]*source // those that a domain names
	gone    []mta.Event        // the ends of alarms whose sources are no more
}

// New checks the configuration. Until Load has succeeded every recipient is deferred.
func New(cfg Config, domains map[string]Domain, d Deps) (*Policy, error) {
	if err := validate(cfg, domains); err != nil {
		return nil, err
	}
	p := &Policy{
		deps: d, log: d.Log, cfg: cfg, domains: maps.Clone(domains), sources: map[string]*source{},
		wake: make(chan struct{}, 1),
	}
	wake := p.wakeUp
	if d.Callout == nil {
		wake = nil
	}
	p.learned = newLearned(cfg.Learned, wake)
	p.limits, p.tuples, p.doubts = newLimits(), newTuples(), newDoubts()
	p.shadows = newShadows()
	var err error
	if p.metrics, err = newMetrics(d.Metrics, p); err != nil {
		return nil, err
	}
	if err := p.startJudging(); err != nil {
		return nil, err
	}
	return p, nil
}

func validate(cfg Config, domains map[string]Domain) error {
	var errs []error
	for _, f := range cfg.Validate() {
		errs = append(errs, fmt.Errorf("policy: %s: %s", f.Key, f.Text))
	}
	for _, name := range slices.Sorted(maps.Keys(domains)) {
		if key, err := mta.Domain(name); err != nil || key != name {
			errs = append(errs, fmt.Errorf("policy: %q is not a domain in its A-label, lower-case form", name))
		}
		d := domains[name]
		for _, f := range d.Validate() {
			errs = append(errs, fmt.Errorf("policy: %s: %s: %s", name, f.Key, f.Text))
		}
	}
	for _, f := range CheckDomains(cfg, domains) {
		errs = append(errs, fmt.Errorf("policy: %s: %s", f.Key, f.Text))
	}
	return errors.Join(errs...)
}

// firstLook is how long the start waits for sources of which there is no copy from before. Their domains defer until
// then.
const firstLook = 10 * time.Second

// Load reads all lists: it is for the start. Files that domains name as recipients must be good: an error is
// ListFaults, and means that nothing is known and nothing may be taken. Sources begin with their last good copies;
// only those that have none, and files, are read at once. One that can't be read is no error, for its server may be
// away for the same reason as the primary.
func (p *Policy) Load(ctx context.Context) error {
	p.mu.Lock()
	files, faults := readLists(ctx, p.domains, p.log)
	if len(faults) > 0 {
		p.mu.Unlock()
		return faults
	}
	p.files, p.sources = files, p.makeSources(ctx, p.cfg, p.domains)
	p.rebuild()
	var now []*source
	for _, s := range p.sources {
		if s.ask == nil && (s.got == nil || s.cfg.File != "") {
			s.looking = true
			now = append(now, s)
		}
	}
	p.mu.Unlock()
	p.lookAt(ctx, now)
	p.recallLearned(ctx)
	p.recallTuples(ctx)
	p.recallGreylist(ctx)
	return nil
}

// lookAt reads sources at the same time, for as long as a start may take.
func (p *Policy) lookAt(ctx context.Context, sources []*source) {
	limited, cancel := context.WithTimeout(ctx, firstLook)
	defer cancel()
	var g errgroup.Group
	g.SetLimit(maxLooks)
	for _, s := range sources {
		g.Go(func() error { _ = p.look(limited, s); return nil }) // logged there
	}
	_ = g.Wait()
}

// Check finds what Load would fail at, and what is wrong with sources on this host, without asking any server and
// without changing anything. An error is ListFaults.
func (p *Policy) Check(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, faults := readLists(ctx, p.domains, p.log)
	faults = append(faults, checkSources(p.cfg, p.domains)...)
	served := servedBy(p.domains)
	for _, name := range slices.Sorted(maps.Keys(served)) {
		cfg := p.cfg.Sources[name]
		if cfg.File == "" {
			continue
		}
		_, err := fetch(ctx, job{name: name, cfg: cfg, serves: served[name]})
		if f, ok := errors.AsType[ListFaults](err); ok {
			faults = append(faults, f...)
		} else if err != nil {
			faults = append(faults, ListFault{File: "policy.sources." + name, Text: err.Error()})
		}
	}
	if len(faults) > 0 {
		return faults
	}
	return nil
}

// checkSources looks at what the sources that are used need on this host.
func checkSources(cfg Config, domains map[string]Domain) ListFaults {
	var faults ListFaults
	for _, name := range slices.Sorted(maps.Keys(servedBy(domains))) {
		faults = append(faults, checkLocal(name, cfg.Sources[name])...)
	}
	return faults
}

// makeSources gives the sources that a configuration uses, each with what is known of it already: that of before, or
// the last good copy. p.mu is held.
func (p *Policy) makeSources(ctx context.Context, cfg Config, domains map[string]Domain) map[string]*source {
	now := time.Now()
	sources := map[string]*source{}
	for name, serves := range servedBy(domains) {
		old := p.sources[name]
		if old != nil && old.same(cfg.Sources[name], serves) {
			sources[name] = old
			continue
		}
		s := newSource(name, cfg.Sources[name], serves, now)
		s.carry(old)
		p.recall(ctx, s)
		sources[name] = s
	}
	return sources
}

// Reload puts a new configuration and the present content of all lists in force, in one step. A list that can't be
// read leaves its domain's old list in force, with an Error in the log. A domain that has no old list to keep makes
// Reload fail; then, and on any other error, everything stays as it was. Sources are read anew by Run.
func (p *Policy) Reload(ctx context.Context, cfg Config, domains map[string]Domain) error {
	if err := validate(cfg, domains); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if faults := checkSources(cfg, domains); len(faults) > 0 {
		return faults
	}
	files, faults := readLists(ctx, domains, p.log)
	if ctx.Err() != nil {
		return fmt.Errorf("policy: read recipients: %w", context.Cause(ctx))
	}
	if len(faults) > 0 {
		if err := p.keepOld(files, domains, faults); err != nil {
			return err
		}
		p.log.LogAttrs(ctx, slog.LevelError, "recipient list can't be read, the old one stays in force", slog.Any("err", faults))
	}
	if err := p.rejudge(cfg, domains); err != nil {
		return err
	}
	p.replaceSources(p.makeSources(ctx, cfg, domains))
	p.cfg, p.domains, p.files = cfg, maps.Clone(domains), files
	p.learned.reload(cfg.Learned, domains)
	p.rebuild()
	p.wakeUp()
	return nil
}

// replaceSources ends what is no longer used, and has the rest read soon. p.mu is held.
func (p *Policy) replaceSources(sources map[string]*source) {
	now := time.Now()
	for name, old := range p.sources {
		if sources[name] == old {
			old.next = now
			continue
		}
		if old.ask != nil {
			old.ask.close()
		}
		for kind, on := range old.alarms {
			if on && sources[name] == nil {
				p.gone = append(p.gone, mta.Event{Kind: kind, Subject: name, Level: mta.Over, At: now, Text: "Source " + name + " is no longer used"})
			}
		}
	}
	p.sources = sources
}

// keepOld puts into files what was known of the domains that are missing there. p.mu is held.
func (p *Policy) keepOld(files map[string]*set, domains map[string]Domain, faults ListFaults) error {
	for name, d := range domains {
		if d.Recipients == "" || files[name] != nil {
			continue
		}
		if p.files[name] == nil {
			return fmt.Errorf("policy: %s has no list to keep: %w", name, faults)
		}
		files[name] = p.files[name]
	}
	return nil
}

// rebuild puts what is known now in force. p.mu is held.
func (p *Policy) rebuild() {
	p.state.Store(newState(p.cfg, p.domains, p.files, p.sources, p.metrics))
}

// readLists reads each file once, however many domains it serves. The map has every domain whose list was read; the
// faults say what is wrong with the others.
func readLists(ctx context.Context, domains map[string]Domain, log *slog.Logger) (map[string]*set, ListFaults) {
	served := map[string][]string{} // file to domains
	for name, d := range domains {
		if d.Recipients != "" {
			served[d.Recipients] = append(served[d.Recipients], name)
		}
	}
	lists := map[string]*set{}
	var faults ListFaults
	for _, file := range slices.Sorted(maps.Keys(served)) {
		sets, wrong := readList(ctx, file, served[file], log)
		faults = append(faults, wrong...)
		maps.Copy(lists, sets)
	}
	return lists, faults
}

// Recipient decides about one RCPT. The recipient that it returns has its destination, and a bare postmaster has got
// a domain. A *mta.Reply in the error is a refusal; any other error is our own fault.
func (p *Policy) Recipient(ctx context.Context, env *mta.Envelope, to mta.Path) (mta.Recipient, error) {
	s := p.state.Load()
	if s == nil {
		return mta.Recipient{}, errNotLoaded
	}
	q, now := s.place(to), time.Now()
	f, reply := p.judge(ctx, s, q, now)
	p.metrics.answer(f)
	if reply != nil {
		if q.known != nil {
			p.limits.guessed(s.cfg.Limits, env, now)
		}
		return mta.Recipient{}, reply
	}
	r := mta.Recipient{Addr: q.to, Dest: q.dest}
	if reply := p.before(ctx, env, r); reply != nil {
		return mta.Recipient{}, reply
	}
	return r, nil
}

var errNotLoaded = errors.New("policy: recipients are not loaded")

// question is one recipient, placed among the domains.
type question struct {
	to    mta.Path
	dest  string
	local string // folded
	known *known // nil: not one of our domains
}

func (s *state) place(to mta.Path) question {
	if to.Domain == "" && to.IsPostmaster() && s.postmaster != "" {
		to.Domain = s.postmaster
	}
	dest := to.DomainKey()
	return question{to: to, dest: dest, local: fold(to.Local), known: s.domains[dest]}
}

// judge decides, and says what the sender is told unless the recipient is taken.
func (p *Policy) judge(ctx context.Context, s *state, q question, now time.Time) (finding, *mta.Reply) {
	if reply := q.refused(); reply != nil {
		return finding{verdict: Reject, source: byRelay}, reply
	}
	h := p.hear(ctx, s, q.known, q.dest, q.local, now)
	f := h.decide()
	return f, f.reply(q.dest)
}

// refused is what is said to a recipient whose mail would pass through us to somewhere else; nil: he is at a domain of
// ours.
func (q *question) refused() *mta.Reply {
	switch {
	case q.known == nil:
		return relayRefused(q.dest)
	case isRouted(q.local) && !q.known.names(q.local):
		return mta.NewReply(550, "5.7.1", "relay not permitted: the address names a way through %s to somewhere else", q.dest)
	}
	return nil
}

// relayRefused answers for a domain that is not ours; it is "" for an address literal.
func relayRefused(domain string) *mta.Reply {
	if domain == "" {
		domain = "that address"
	}
	return mta.NewReply(550, "5.7.1", "relay not permitted: no mail for %s is taken here", domain)
}

// isRouted reports a local part that a primary might resolve to another host: "user%other", "other!user" or
// "user@other" in quotes. A primary that trusts us would relay it for anyone (Postfix: allow_untrusted_routing).
func isRouted(local string) bool { return strings.ContainsAny(local, "@%!") }

// Lookup tells what Recipient would say, and why: it is for people.
func (p *Policy) Lookup(ctx context.Context, to mta.Path) (Answer, error) {
	s := p.state.Load()
	if s == nil {
		return Answer{}, errNotLoaded
	}
	now := time.Now()
	q := s.place(to)
	f, reply := p.judge(ctx, s, q, now)
	a := Answer{Addr: q.to, Dest: q.dest, Verdict: f.verdict, Source: f.source, Known: f.known, Reply: reply}
	if !f.at.IsZero() {
		a.Age = now.Sub(f.at)
	}
	if q.known != nil {
		a.Says = p.says(ctx, s, q, now)
	}
	return a, nil
}

// says asks every source.
func (p *Policy) says(ctx context.Context, s *state, q question, now time.Time) []Saying {
	base := s.base(q.local)
	var all []Saying
	for _, v := range q.known.views {
		say := Saying{Source: v.name, Complete: v.complete, Fresh: v.fresh(now)}
		if at := v.checked(); !at.IsZero() {
			say.Age = now.Sub(at)
		}
		switch found, err := p.said(ctx, v, q, base, now); {
		case err != nil:
			say.Says = err.Error()
		case found:
			say.Says = "listed"
		case !v.read:
			say.Says = "not read yet"
		default:
			say.Says = "not listed"
		}
		all = append(all, say)
	}
	return append(all, p.learned.says(q.dest, q.local, base, now))
}

func (p *Policy) said(ctx context.Context, v *view, q question, base string, now time.Time) (bool, error) {
	if v.ask == nil {
		return v.has(q.local, base), nil
	}
	found, _, err := p.askOne(ctx, v, q.known.lists, q.local, base, now)
	return found, err
}

// wakeUp has Run look at what is due.
func (p *Policy) wakeUp() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}
