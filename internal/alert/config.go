package alert

import (
	"fmt"
	"io"
	"net/url"
	"slices"
	"text/template"
	"time"

	"understudy/internal/mta"
)

// Config says who is told.
type Config struct {
	// Each is told of every event that it wants, by HTTP POST.
	Webhooks []Webhook `yaml:"webhooks"`
	// After a message about a subject, further ones about it wait so long; what is undone meanwhile is never sent.
	Settle time.Duration `yaml:"settle"`
	// An alarm that is still on is sent again after this time; 0 is never.
	Repeat time.Duration `yaml:"repeat"`
	// The longest that a webhook may take to answer.
	Timeout time.Duration `yaml:"timeout"`
	// For how long a message is tried again; the waits grow from a second to five minutes.
	GiveUp time.Duration `yaml:"give_up"`
	// More events of one kind than this, waiting at once, become one message.
	Collapse int `yaml:"collapse"`
	// An alarm when the spooled mail is more than this. 0 is never.
	SpoolAbove mta.Size `yaml:"spool_above"`
	// An alarm when a message that is not held has waited longer than this. 0 is never.
	OldestAbove time.Duration `yaml:"oldest_above"`
}

// Webhook is one receiver.
type Webhook struct {
	// Where to POST.
	URL string `yaml:"url"`
	// What to send: json (the event, or a list of them in "events"), ntfy, slack (also Mattermost, Rocket.Chat, Discord's
	// /slack), alertmanager (its v2 API, /api/v2/alerts), or a template below.
	Format string `yaml:"format"`
	// A text/template of the body, in place of a format. It is given Kind, Subject, Level, At, Text, Details and Host;
	// {{json .Text}} quotes for JSON.
	Template string `yaml:"template"`
	// The type of a template's body.
	ContentType string `yaml:"content_type"`
	// Header fields to add. Each value is a template too.
	Headers map[string]string `yaml:"headers"`
	// A file with a token, sent as "Authorization: Bearer TOKEN".
	TokenFile string `yaml:"token_file"`
	// Only these kinds of events. None: all.
	Kinds []string `yaml:"kinds"`
	// Without notices: only alarms, and their ends.
	AlarmsOnly bool `yaml:"alarms_only"`
}

// DefaultConfig is what an absent section means.
func DefaultConfig() Config {
	return Config{Settle: 30 * time.Second, Repeat: 12 * time.Hour, Timeout: 10 * time.Second, GiveUp: time.Hour, Collapse: 10, OldestAbove: 4 * time.Hour}
}

// Validate reports every fault at once.
func (c *Config) Validate() []mta.Fault {
	var faults []mta.Fault
	for i := range c.Webhooks {
		for _, f := range c.Webhooks[i].validate() {
			faults = append(faults, mta.Fault{Key: fmt.Sprintf("webhooks[%d].%s", i, f.Key), Text: f.Text})
		}
	}
	if c.Settle < 0 || c.Repeat < 0 {
		faults = append(faults, mta.NewFault("settle", "settle and repeat must not be below 0"))
	}
	if c.Timeout <= 0 {
		faults = append(faults, mta.NewFault("timeout", "must be above 0, for example 10s"))
	}
	if c.GiveUp <= 0 {
		faults = append(faults, mta.NewFault("give_up", "must be above 0, for example 1h"))
	}
	if c.Collapse < 1 {
		faults = append(faults, mta.NewFault("collapse", "must be at least 1"))
	}
	return faults
}

func (w *Webhook) validate() []mta.Fault {
	var faults []mta.Fault
	u, err := url.Parse(w.URL)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		faults = append(faults, mta.NewFault("url", "must be an http or https URL"))
	}
	if w.Template != "" && w.Format != "" {
		faults = append(faults, mta.NewFault("template", "a webhook has a format or a template, not both"))
	}
	if _, ok := formats[w.Format]; !ok && w.Format != "" {
		faults = append(faults, mta.NewFault("format", "%q is not json, ntfy, slack or alertmanager", w.Format))
	}
	if err := tryTemplate(w.Template); err != nil {
		faults = append(faults, mta.NewFault("template", "%v", err))
	}
	for name, v := range w.Headers {
		if err := tryTemplate(v); err != nil {
			faults = append(faults, mta.NewFault("headers", "%s: %v", name, err))
		}
		if !validField(name) {
			faults = append(faults, mta.NewFault("headers", "%q is no header field's name", name))
		}
	}
	for i, k := range w.Kinds {
		if !slices.Contains(mta.Kinds(), k) {
			faults = append(faults, mta.NewFault(fmt.Sprintf("kinds[%d]", i), "%q is no kind of event", k))
		}
	}
	return faults
}

// validField is an RFC 9110 token.
func validField(name string) bool {
	for _, c := range name {
		if c != '-' && c != '_' && (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') {
			return false
		}
	}
	return name != ""
}

// tryTemplate runs a template on an event, so that a slip is found before the event comes.
func tryTemplate(text string) error {
	t, err := parse(text)
	if err != nil {
		return err
	}
	return t.Execute(io.Discard, view{})
}

func parse(text string) (*template.Template, error) {
	return template.New("webhook").Funcs(funcs).Parse(text)
}
