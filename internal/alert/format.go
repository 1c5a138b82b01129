package alert

import (
	"bytes"
	"encoding/json"
	"strings"
	"text/template"
	"time"

	"understudy/internal/mta"
)

// view is what templates see.
type view struct {
	mta.Event
	Host string // who we are
}

// Title is a line that stands above the text.
func (v view) Title() string {
	title := v.Host + ": " + strings.ReplaceAll(v.Kind, "_", " ")
	if v.Level == mta.Over {
		title += " is over"
	}
	return title
}

var funcs = template.FuncMap{
	"json": func(v any) (string, error) {
		b, err := json.Marshal(v)
		return string(b), err
	},
	"line": oneLine,
}

// oneLine makes a text fit for a header field.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
}

// message is what is POSTed.
type message struct {
	body        []byte
	contentType string
	headers     map[string]string
}

// sender is what a format knows of us.
type sender struct {
	host string
	hold time.Duration // how long a word of ours is to be believed: longer than until we say it again
}

// formats are the shapes that well-known receivers want.
var formats = map[string]func(m batch, by sender) (message, error){
	"":             formatJSON,
	"json":         formatJSON,
	"ntfy":         formatNtfy,
	"slack":        formatSlack,
	"alertmanager": formatAlertmanager,
}

func formatJSON(m batch, by sender) (message, error) {
	b, err := json.Marshal(struct {
		Host string `json:"host"`
		mta.Event
		Events []mta.Event `json:"events"`
	}{by.host, m.summary(), m.events})
	return message{body: b, contentType: "application/json"}, err
}

func formatNtfy(m batch, by sender) (message, error) {
	e := m.summary()
	priority, tags := "3", "information_source"
	switch e.Level {
	case mta.Alarm:
		priority, tags = "5", "rotating_light"
	case mta.Over:
		tags = "white_check_mark"
	}
	return message{body: []byte(e.Text), contentType: "text/plain; charset=utf-8", headers: map[string]string{
		"Title": oneLine(view{e, by.host}.Title()), "Priority": priority, "Tags": tags,
	}}, nil
}

func formatSlack(m batch, by sender) (message, error) {
	e := m.summary()
	sign := map[mta.Level]string{mta.Alarm: ":rotating_light:", mta.Over: ":white_check_mark:", mta.Notice: ":information_source:"}
	// The three characters that Slack reads as markup.
	text := strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;").Replace(e.Text)
	b, err := json.Marshal(map[string]string{"text": sign[e.Level] + " *" + view{e, by.host}.Title() + "*\n" + text})
	return message{body: b, contentType: "application/json"}, err
}

func formatAlertmanager(m batch, by sender) (message, error) {
	type alert struct {
		Labels      map[string]string `json:"labels"`
		Annotations map[string]string `json:"annotations"`
		StartsAt    *time.Time        `json:"startsAt,omitempty"`
		EndsAt      time.Time         `json:"endsAt"`
	}
	alerts := []alert{}
	for _, e := range m.events {
		severity := "warning"
		if e.Level == mta.Notice {
			severity = "info"
		}
		a := alert{
			Labels:      map[string]string{"alertname": "understudy_" + e.Kind, "instance": by.host, "severity": severity},
			Annotations: map[string]string{"summary": e.Text},
			EndsAt:      e.At, // over
		}
		if e.Subject != "" {
			a.Labels["subject"] = e.Subject
		}
		if e.Level != mta.Over {
			a.StartsAt, a.EndsAt = &e.At, time.Now().Add(by.hold)
		}
		if e.Level == mta.Notice {
			a.EndsAt = e.At.Add(time.Hour)
		}
		alerts = append(alerts, a)
	}
	b, err := json.Marshal(alerts)
	return message{body: b, contentType: "application/json"}, err
}

// fill runs a template on the event.
func fill(t *template.Template, v view) (string, error) {
	var b bytes.Buffer
	err := t.Execute(&b, v)
	return b.String(), err
}
