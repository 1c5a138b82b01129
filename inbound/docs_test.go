package inbound

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// loggedEvents are the constant messages of all calls of a logger in this package.
func loggedEvents(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	var events []string
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			if call, ok := n.(*ast.CallExpr); ok {
				if e, ok := event(call); ok {
					events = append(events, e)
				}
			}
			return true
		})
	}
	slices.Sort(events)
	return slices.Compact(events)
}

// event is the message of a call such as log.Info("…") or log.LogAttrs(ctx, level, "…").
func event(call *ast.CallExpr) (string, bool) {
	f, ok := call.Fun.(*ast.SelectorExpr)
	if !ok {
		return "", false
	}
	at := map[string]int{"Debug": 0, "Info": 0, "Warn": 0, "Error": 0, "Log": 2, "LogAttrs": 2}
	i, ok := at[f.Sel.Name]
	if !ok || len(call.Args) <= i {
		return "", false
	}
	lit, ok := call.Args[i].(*ast.BasicLit)
	if !ok {
		return "", false
	}
	text, err := strconv.Unquote(lit.Value)
	return text, err == nil
}

func TestEventsAndMetricsAreDocumented(t *testing.T) {
	page, err := os.ReadFile("../docs/inbound.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(page), "## Events in the log")
	table, _, _ := strings.Cut(rest, "## Metrics")
	var documented []string
	for line := range strings.Lines(table) {
		if rest, ok := strings.CutPrefix(line, "| `"); ok {
			name, _, _ := strings.Cut(rest, "`")
			documented = append(documented, name)
		}
	}
	slices.Sort(documented)
	if got := loggedEvents(t); !slices.Equal(got, documented) {
		t.Errorf("logged\n%q, documented\n%q", got, documented)
	}

	reg := prometheus.NewRegistry()
	m := newMetrics(reg)
	m.refused.WithLabelValues("full")
	m.handshakes.WithLabelValues("failed")
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if !strings.Contains(string(page), "`"+f.GetName()) {
			t.Errorf("metric %s is not documented", f.GetName())
		}
	}
}
