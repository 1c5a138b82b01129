package policy

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"understudy/internal/dnsbl"
	"understudy/internal/filter"
	"understudy/internal/mailauth"
	"understudy/internal/mta"
)

// judging is all that a judgement needs of the configuration. It is never changed once it is in Policy.judging.
type judging struct {
	cfg      Config
	general  *rules
	own      map[string]*rules // of domains that have rules of their own
	domains  map[string]bool   // ours
	stages   map[string]bool   // those that at least one domain wants
	scanners map[string]bool   // filters that look for viruses
	verifier *mailauth.Verifier
}

func newJudging(cfg Config, domains map[string]Domain, dns Resolver) (*judging, error) {
	j := &judging{
		cfg: cfg, general: rulesOf(Rules{}, cfg.Judge.Rules), own: map[string]*rules{}, domains: map[string]bool{},
		stages: map[string]bool{}, scanners: map[string]bool{},
	}
	for name, d := range domains {
		r := j.general
		if !d.Judge.isZero() {
			r = rulesOf(d.Judge, cfg.Judge.Rules)
			j.own[name] = r
		}
		j.domains[name] = true
		maps.Copy(j.stages, r.stages)
	}
	for _, f := range cfg.Filters {
		if f.VirusScanner || f.Kind == filter.Clamd {
			j.scanners[cmp.Or(f.Name, f.Kind)] = true
		}
	}
	if dns == nil {
		return j, nil
	}
	var err error
	j.verifier, err = mailauth.New(cfg.Auth, dns)
	return j, err
}

// of gives the rules of a domain.
func (j *judging) of(domain string) *rules {
	if r := j.own[domain]; r != nil {
		return r
	}
	return j.general
}

// ofEnvelope gives the rules of a transaction: all its recipients have the same (see before).
func (j *judging) ofEnvelope(env *mta.Envelope) *rules {
	if len(env.Rcpts) == 0 {
		return j.general
	}
	return j.of(env.Rcpts[0].Dest)
}

// startJudging makes what judging needs besides the configuration.
func (p *Policy) startJudging() error {
	var err error
	p.lists = dnsbl.New(dnsbl.Config{}, p.deps.Resolver, p.deps.Events)
	p.greylist = newGreylist()
	p.filters, err = filter.New(nil, filter.Deps{Hostname: p.cfg.Hostname, Log: p.log, Metrics: p.deps.Metrics, Events: p.deps.Events})
	if err != nil {
		return fmt.Errorf("policy: %w", err)
	}
	return p.rejudge(p.cfg, p.domains)
}

// rejudge puts a configuration in force that was validated, or returns an error and changes nothing. p.mu is held, or p
// is not shared yet.
func (p *Policy) rejudge(cfg Config, domains map[string]Domain) error {
	j, err := newJudging(cfg, domains, p.deps.Resolver)
	if err == nil {
		err = p.filters.Reload(cfg.Filters)
	}
	if err != nil {
		return fmt.Errorf("policy: %w", err)
	}
	entries, _ := dnsbl.ParseEntries(cfg.Judge.DNSLists) // validated
	p.lists.Reload(dnsbl.Config{Entries: entries, Names: cfg.Judge.DNSListNames, Wait: cfg.Judge.DNSListsWait})
	p.judging.Store(j)
	return nil
}

// Filters are the content filters.
func (p *Policy) Filters() *filter.Set { return p.filters }

// Lists tells how each DNS list is, in the order of the configuration.
func (p *Policy) Lists() []dnsbl.Status { return p.lists.Status() }

// HindsightAfter is how long a message must have waited to be judged again before it is handed over, as configured now.
// 0: none is.
func (p *Policy) HindsightAfter() time.Duration { return p.judging.Load().cfg.HindsightAfter }

// Sender judges what can be known before content: the client, its HELO, the reverse-path. It does not decide, for
// domains differ in what they make of it: the findings have their default weights, and there is no action.
func (p *Policy) Sender(ctx context.Context, env *mta.Envelope) *mta.Verdict {
	v := &mta.Verdict{At: time.Now()}
	v.Auth, v.Findings = p.front(ctx, p.judging.Load(), env)
	v.Score = score(v.Findings)
	return v
}

// frontWait bounds all that is asked before content: a sender waits five minutes for the reply to RCPT (RFC 5321,
// 4.5.3.2.3).
const frontWait = 30 * time.Second

// front finds what speaks for or against a message before its content is known. What costs nothing is looked at first,
// then the DNS is asked everything at the same time.
func (p *Policy) front(ctx context.Context, j *judging, env *mta.Envelope) (mta.Auth, []mta.Finding) {
	var said []mta.Finding
	if j.stages[stageClient] {
		said = greeting(env.Peer, j.cfg.Hostname)
	}
	if p.deps.Resolver == nil || env.Peer.Addr.Addr().Unmap().IsLoopback() { // who is on this host is the operator's own
		return mta.Auth{}, said
	}
	auth, asked := p.askFront(ctx, j, env)
	return auth, append(said, asked...)
}

// askFront is what the DNS says of the client and the reverse-path.
func (p *Policy) askFront(ctx context.Context, j *judging, env *mta.Envelope) (mta.Auth, []mta.Finding) {
	ctx, cancel := context.WithTimeout(ctx, frontWait)
	defer cancel()
	dns, public := p.deps.Resolver, isPublic(env.Peer.Addr.Addr())
	var auth mta.Auth
	var asked [4][]mta.Finding // each question has its place, so that the order is always the same
	var g sync.WaitGroup
	if j.stages[stageClient] && public {
		g.Go(func() {
			asked[0] = slices.Concat(reverseName(ctx, dns, env.Peer), borrowedName(ctx, dns, env.Peer, func(d string) bool { return j.domains[d] }))
		})
	}
	if j.stages[stageLists] && public {
		g.Go(func() { asked[1] = listed(ctx, p.lists, env.Peer.Addr.Addr()) })
	}
	if j.stages[stageSender] {
		g.Go(func() { asked[2] = senderDomain(ctx, dns, env.From) })
	}
	if j.stages[stageSender] && public {
		g.Go(func() { auth, asked[3] = p.reversePath(ctx, j, env) })
	}
	g.Wait()
	if auth.Helo.Result == "pass" { // the domain itself names the client
		asked[0] = without(asked[0], func(name string) bool { return name == "helo:our-domain" })
	}
	return auth, slices.Concat(asked[:]...)
}

// reversePath asks SPF, and whether a reverse-path in one of our domains is a forgery.
func (p *Policy) reversePath(ctx context.Context, j *judging, env *mta.Envelope) (mta.Auth, []mta.Finding) {
	var auth mta.Auth
	auth.SPF, auth.Helo = j.verifier.SPF(ctx, env.Peer, env.From)
	found := mailauth.SPFFindings(auth.SPF, auth.Helo)
	if domain := env.From.DomainKey(); j.domains[domain] {
		found = append(found, spoofed(ctx, p.deps.Resolver, env.Peer, domain, auth.SPF.Result)...)
	}
	return auth, found
}

// before decides about one recipient who is known, by what Sender found: nil takes him. Postmaster is always reached
// (RFC 5321, 4.5.1).
func (p *Policy) before(ctx context.Context, env *mta.Envelope, to mta.Recipient) *mta.Reply {
	if env == nil {
		return nil
	}
	j := p.judging.Load()
	r := j.of(to.Dest)
	if len(env.Rcpts) > 0 && j.of(env.Rcpts[0].Dest) != r {
		return mta.NewReply(452, "4.5.3", "this recipient needs a message of its own, please send it another copy")
	}
	if env.Verdict == nil || to.Addr.IsPostmaster() {
		return nil
	}
	v := r.conclude(r.weigh(certain(env.Verdict)))
	if reply := v.Reply(); reply != nil {
		p.judged(ctx, stepRcpt, env, to.Dest, v)
		return reply
	}
	if wait := p.greylisted(j, r, env, to, v); wait > 0 {
		v.Findings, v.Action = append(v.Findings, waiting(wait)), mta.Defer
		p.judged(ctx, stepRcpt, env, to.Dest, v)
		return v.Reply()
	}
	return nil
}

// certain leaves out what content may still excuse: a forged reverse-path in one of our domains, where a valid DKIM
// signature would prove the sender. Where the domain's SPF record says no, nothing excuses it.
func certain(v *mta.Verdict) []mta.Finding {
	if v.Auth.SPF.Result == "fail" {
		return v.Findings
	}
	return without(v.Findings, func(name string) bool { return name == spoofOwn })
}

// without leaves findings out.
func without(findings []mta.Finding, gone func(name string) bool) []mta.Finding {
	return slices.DeleteFunc(slices.Clone(findings), func(f mta.Finding) bool { return gone(f.Name) })
}

// conclude decides by findings that were weighed.
func (r *rules) conclude(counted []mta.Finding) mta.Verdict {
	v := mta.Verdict{Findings: counted, Score: score(counted), At: time.Now()}
	v.Action = max(asked(counted), r.reached(v.Score))
	return v
}

// Content judges a whole message that would be kept here, by the rules of the domain that it goes to. The edit is of what
// is kept. An error is our own fault: the content could not be read.
func (p *Policy) Content(ctx context.Context, env *mta.Envelope, c mta.Content) (mta.Verdict, mta.Edit, error) {
	j := p.judging.Load()
	r := j.ofEnvelope(env)
	drop, err := p.forged(j, env, c)
	if err != nil {
		return mta.Verdict{}, mta.Edit{}, err
	}
	v, err := p.weighAll(ctx, j, env, mta.Edit{Drop: drop}.Apply("", c)) // a forged mark must not sway filters
	if err != nil {
		return mta.Verdict{}, mta.Edit{}, err
	}
	if wait := p.filterGreylisted(j, r, env, v); wait > 0 {
		v.Findings, v.Action = append(v.Findings, waiting(wait)), max(v.Action, mta.Defer)
	}
	p.judged(ctx, stepContent, env, dest(env), v)
	return v, mta.Edit{Above: j.above(env, &v), Drop: drop}, nil
}

// Clean gives the edit for a message that goes inline: only what nobody but us and the primary may write is left out.
// Nobody is asked.
func (p *Policy) Clean(env *mta.Envelope, c mta.Content) (mta.Edit, error) {
	drop, err := p.forged(p.judging.Load(), env, c)
	return mta.Edit{Drop: drop}, err
}

// opinion is what Content would make of a message, without a trace: nothing is logged, and no greylist hears of it.
func (p *Policy) opinion(ctx context.Context, env *mta.Envelope, c mta.Content) (mta.Verdict, error) {
	j := p.judging.Load()
	drop, err := p.forged(j, env, c)
	if err != nil {
		return mta.Verdict{}, err
	}
	return p.weighAll(ctx, j, env, mta.Edit{Drop: drop}.Apply("", c)) // a forged mark must not sway filters
}

// weighAll judges a whole message. What Sender found is in env, or is found now. The filters are asked last, and only if
// the message is not refused already: they are dear.
func (p *Policy) weighAll(ctx context.Context, j *judging, env *mta.Envelope, c mta.Content) (mta.Verdict, error) {
	r := j.ofEnvelope(env)
	var auth mta.Auth
	var found []mta.Finding
	if env.Verdict != nil {
		auth, found = env.Verdict.Auth, slices.Clone(env.Verdict.Findings)
	} else {
		auth, found = p.front(ctx, j, env)
	}
	if j.verifier != nil && r.stages[stageContent] {
		var more []mta.Finding
		var err error
		if auth, more, err = authenticate(ctx, j.verifier, env, c, auth); err != nil {
			return mta.Verdict{}, fmt.Errorf("policy: judge content: %w", err)
		}
		found = append(found, more...)
	}
	found = excused(found, env.From.DomainKey(), auth)
	v := r.forAll(env, r.weigh(found))
	if v.Action != mta.Reject && r.stages[stageFilters] {
		found = append(found, p.filtered(ctx, j, r, env, c, auth)...)
		v = r.forAll(env, r.weigh(found))
	}
	v.Auth = auth
	return v, nil
}

// authenticate judges header, DKIM and DMARC. Where SPF was not looked at, because the client is not known, it might have
// passed: then DMARC has neither passed nor failed.
func authenticate(ctx context.Context, v *mailauth.Verifier, env *mta.Envelope, c mta.Content, known mta.Auth) (mta.Auth, []mta.Finding, error) {
	spf := known.SPF
	if spf.Result == "" {
		domain, _ := mta.Domain(cmp.Or(env.From.Domain, env.Peer.Helo))
		known.SPF = mta.AuthResult{Result: "temperror", Domain: domain}
	}
	auth, found, err := v.Content(ctx, c, known)
	auth.SPF = spf
	return auth, found, err
}

// excused leaves out that a reverse-path in one of our domains is forged, if a valid DKIM signature speaks for the domain
// and SPF does not deny it. A signature that can't be checked now may yet do so.
func excused(found []mta.Finding, domain string, auth mta.Auth) []mta.Finding {
	signed := func(result string) bool {
		return slices.ContainsFunc(auth.DKIM, func(d mta.AuthResult) bool {
			return d.Result == result && strings.Contains(d.Domain, ".") && within(domain, strings.ToLower(d.Domain))
		})
	}
	forged := slices.ContainsFunc(found, func(f mta.Finding) bool { return f.Name == spoofOwn })
	if !forged || auth.SPF.Result == "fail" || !signed("pass") && !signed("temperror") {
		return found
	}
	found = without(found, func(name string) bool { return name == spoofOwn })
	if !signed("pass") {
		found = append(found, find("spoof:unverified", domain))
	}
	return found
}

// forAll decides for all recipients of a message. Mail to postmaster alone is not refused by its score, nor by what is
// only known of its sender (RFC 5321, 4.5.1): it is marked. Beside others it shares their fate, for else his address would
// be a way around every rule.
func (r *rules) forAll(env *mta.Envelope, counted []mta.Finding) mta.Verdict {
	v := r.conclude(counted)
	if len(env.Rcpts) == 0 || slices.ContainsFunc(env.Rcpts, func(to mta.Recipient) bool { return !to.Addr.IsPostmaster() }) {
		return v
	}
	content := slices.DeleteFunc(slices.Clone(counted), func(f mta.Finding) bool {
		stage := stageOf[kindOf(f.Name)]
		return stage == stageClient || stage == stageLists || stage == stageSender
	})
	v.Action = max(asked(content), min(v.Action, mta.Mark))
	return v
}

// filtered asks the filters.
func (p *Policy) filtered(ctx context.Context, j *judging, r *rules, env *mta.Envelope, c mta.Content, auth mta.Auth) []mta.Finding {
	found := p.filters.Judge(ctx, env, c, auth, r.Filters...)
	if !r.AcceptAndMark {
		return found
	}
	for i, f := range found {
		if name, ok := absent(f.Name); ok && !j.scanners[name] {
			found[i].Action = min(f.Action, mta.Mark)
		}
	}
	return found
}

// absent is the filter that a finding says gave no answer.
func absent(finding string) (string, bool) {
	name, ok := strings.CutPrefix(finding, "filter:")
	if !ok {
		return "", false
	}
	for _, end := range []string{"-down", "-skipped"} {
		if name, ok := strings.CutSuffix(name, end); ok {
			return name, true
		}
	}
	return "", false
}

// Hindsight judges a message that waited once more, before it is handed over: what the DNS lists and the filters know
// by now. Whoever would be refused or held now is to be held. What was found of its sender and its signatures at receipt
// still holds; trouble of the moment is no opinion.
func (p *Policy) Hindsight(ctx context.Context, env *mta.Envelope, c mta.Content) (*mta.Verdict, error) {
	j := p.judging.Load()
	again := *env
	if v := env.Verdict; v != nil {
		then := *v
		then.Findings = without(v.Findings, func(name string) bool {
			kind := kindOf(name)
			return stageOf[kind] == stageLists || stageOf[kind] == "" // lists; filters and the greylist
		})
		if j.stages[stageLists] && p.deps.Resolver != nil {
			then.Findings = append(then.Findings, listed(ctx, p.lists, env.Peer.Addr.Addr())...)
		}
		again.Verdict = &then
	}
	v, err := p.weighAgain(ctx, j, &again, c)
	if err != nil {
		return nil, err
	}
	switch v.Action {
	case mta.Reject:
		v.Action = mta.Quarantine
	case mta.Defer:
		v.Action = mta.Accept
	}
	p.judged(ctx, stepHindsight, env, dest(env), v)
	return &v, nil
}

// weighAgain is weighAll for content that was examined at receipt: only the filters see it again.
func (p *Policy) weighAgain(ctx context.Context, j *judging, env *mta.Envelope, c mta.Content) (mta.Verdict, error) {
	if env.Verdict == nil {
		v, err := p.weighAll(ctx, j, env, c)
		if err != nil {
			return mta.Verdict{}, err
		}
		return j.ofEnvelope(env).lasting(env, v), nil
	}
	r := j.ofEnvelope(env)
	v := r.forAll(env, r.weigh(env.Verdict.Findings))
	v.Auth = env.Verdict.Auth
	if v.Action < mta.Defer && r.stages[stageFilters] {
		v.Findings = append(v.Findings, r.weigh(p.filtered(ctx, j, r, env, c, v.Auth))...)
	}
	return r.lasting(env, v), nil
}

// lasting decides anew without what is of the moment.
func (r *rules) lasting(env *mta.Envelope, v mta.Verdict) mta.Verdict {
	kept := without(v.Findings, func(name string) bool {
		_, gone := absent(name)
		return gone || name == "sender:unresolved" || name == "spoof:unverified" || name == foundWaiting
	})
	for i := range kept {
		if kept[i].Action == mta.Defer {
			kept[i].Action = mta.Accept
		}
	}
	again := r.forAll(env, kept)
	again.Auth = v.Auth
	return again
}

func dest(env *mta.Envelope) string {
	if len(env.Rcpts) == 0 {
		return ""
	}
	return env.Rcpts[0].Dest
}

// The steps at which something is decided.
const (
	stepRcpt      = "rcpt"
	stepContent   = "content"
	stepHindsight = "hindsight"
)

// judged tells of a decision.
func (p *Policy) judged(ctx context.Context, step string, env *mta.Envelope, domain string, v mta.Verdict) {
	p.metrics.judged[step][v.Action].Inc()
	level := slog.LevelInfo
	if len(v.Findings) == 0 {
		level = slog.LevelDebug // inbound says that it was taken, and there is no more to say
	}
	if !p.log.Enabled(ctx, level) {
		return
	}
	names := make([]string, len(v.Findings))
	var details []string
	for i, f := range v.Findings {
		names[i] = f.Name
		if f.Detail != "" {
			details = append(details, f.Name+": "+f.Detail)
		}
	}
	attrs := []slog.Attr{slog.String("step", step)}
	if !env.ID.IsZero() { // before content there is none
		attrs = append(attrs, slog.String("id", env.ID.String()))
	}
	p.log.LogAttrs(ctx, level, "judged", append(attrs,
		slog.Any("peer", env.Peer.Addr), slog.String("from", env.From.String()), slog.String("domain", domain),
		slog.String("action", v.Action.String()), slog.Float64("score", v.Score), slog.Any("findings", names), slog.Any("details", details))...)
}

// The one finding that only content can excuse.
const spoofOwn = "spoof:own-domain"
