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

	"understudy/internal/mta"
)

// Policy decides about mail. Its methods may be called at any time from any goroutine.
type Policy struct {
	log   *slog.Logger
	state atomic.Pointer[state]

	mu      sync.Mutex // held while a next state is built; guards what follows
	cfg     Config
	domains map[string]Domain
}

// state is all that a decision needs. It is never changed once it is in Policy.state.
type state struct {
	cfg        Config
	always     map[string]bool   // folded local parts; postmaster is among them
	postmaster string            // the domain of a bare <postmaster>; "" if no domain is configured
	domains    map[string]*known // by the form of mta.Domain
}

// known is what we know of a domain's recipients.
type known struct {
	file string // "" if all are accepted
	*set
}

var everyone = &set{all: true}

// New checks the configuration. Until Load has succeeded every recipient is deferred.
func New(cfg Config, domains map[string]Domain, log *slog.Logger) (*Policy, error) {
	if err := validate(cfg, domains); err != nil {
		return nil, err
	}
	return &Policy{log: log, cfg: cfg, domains: maps.Clone(domains)}, nil
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
	return errors.Join(errs...)
}

// Load reads all lists, and all of them must be good: it is for the start. An error is ListFaults, and means that
// nothing is known and nothing may be taken.
func (p *Policy) Load(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	lists, faults := readLists(ctx, p.domains, p.log)
	if len(faults) > 0 {
		return faults
	}
	p.state.Store(newState(p.cfg, p.domains, lists))
	return nil
}

// Reload puts a new configuration and the present content of all lists in force, in one step. A list that can't be
// read leaves its domain's old list in force, with an Error in the log. A domain that has no old list to keep makes
// Reload fail; then, and on any other error, everything stays as it was.
func (p *Policy) Reload(ctx context.Context, cfg Config, domains map[string]Domain) error {
	if err := validate(cfg, domains); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	old := p.state.Load()
	lists, faults := readLists(ctx, domains, p.log)
	if ctx.Err() != nil {
		return fmt.Errorf("policy: read recipients: %w", context.Cause(ctx))
	}
	if len(faults) > 0 {
		if err := keepOld(lists, domains, old, faults); err != nil {
			return err
		}
		p.log.LogAttrs(ctx, slog.LevelError, "recipient list can't be read, the old one stays in force", slog.Any("err", faults))
	}
	p.cfg, p.domains = cfg, maps.Clone(domains)
	p.state.Store(newState(cfg, domains, lists))
	return nil
}

// keepOld puts into lists what the old state knows of the domains that are missing there.
func keepOld(lists map[string]*set, domains map[string]Domain, old *state, faults ListFaults) error {
	for name, d := range domains {
		if d.Recipients == "" || lists[name] != nil {
			continue
		}
		if old == nil || old.domains[name] == nil || old.domains[name].file == "" {
			return fmt.Errorf("policy: %s has no list to keep: %w", name, faults)
		}
		lists[name] = old.domains[name].set
	}
	return nil
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

func newState(cfg Config, domains map[string]Domain, lists map[string]*set) *state {
	s := &state{cfg: cfg, always: map[string]bool{"postmaster": true}, domains: make(map[string]*known, len(domains))}
	for _, l := range cfg.AlwaysTaken {
		s.always[fold(l)] = true
	}
	for name, d := range domains {
		s.domains[name] = &known{file: d.Recipients, set: lists[name]}
		if d.AcceptAll {
			s.domains[name].set = everyone
		}
	}
	s.postmaster = postmasterDomain(cfg.Hostname, domains)
	return s
}

// postmasterDomain is where a bare <postmaster> goes: the longest configured domain that our hostname is or lies in,
// for whoever writes to the postmaster of this host means the people who run it; else the first by name.
func postmasterDomain(hostname string, domains map[string]Domain) string {
	host, err := mta.Domain(hostname)
	for err == nil && host != "" {
		if _, ok := domains[host]; ok {
			return host
		}
		_, host, _ = strings.Cut(host, ".")
	}
	if len(domains) == 0 {
		return ""
	}
	return slices.Min(slices.Collect(maps.Keys(domains)))
}

// Recipient decides about one RCPT. The recipient that it returns has its destination, and a bare postmaster has got
// a domain. A *mta.Reply in the error is a refusal; any other error is our own fault.
func (p *Policy) Recipient(_ context.Context, _ *mta.Envelope, to mta.Path) (mta.Recipient, error) {
	s := p.state.Load()
	if s == nil {
		return mta.Recipient{}, errors.New("policy: recipients are not loaded")
	}
	if to.Domain == "" && to.IsPostmaster() && s.postmaster != "" {
		to.Domain = s.postmaster
	}
	dest := to.DomainKey()
	k := s.domains[dest]
	if k == nil {
		return mta.Recipient{}, relayRefused(dest)
	}
	local := fold(to.Local)
	if isRouted(local) && !k.names(local) {
		return mta.Recipient{}, mta.NewReply(550, "5.7.1", "relay not permitted: the address names a way through %s to somewhere else", dest)
	}
	if !s.takes(k, local) {
		return mta.Recipient{}, mta.NewReply(550, "5.1.1", "no such recipient at %s", dest)
	}
	return mta.Recipient{Addr: to, Dest: dest}, nil
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

func (s *state) takes(k *known, local string) bool {
	if k.has(local) || s.always[local] {
		return true
	}
	i := strings.IndexAny(local, s.cfg.RecipientDelimiter)
	return i > 0 && (k.has(local[:i]) || s.always[local[:i]])
}
