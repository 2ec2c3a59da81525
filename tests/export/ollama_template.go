// Render a Modelfile's template as Ollama does: the same names, the same function json.
// Reads {"template": ..., "messages": [...], "tools": [...]} on standard input, writes the prompt.
package main

import (
	"encoding/json"
	"os"
	"strings"
	"text/template"
)

type call struct {
	Function struct {
		Name      string                 `json:"name"`
		Arguments map[string]interface{} `json:"arguments"`
	} `json:"function"`
}

type message struct {
	Role      string `json:"role"`
	Content   string `json:"content"`
	ToolCalls []call `json:"tool_calls"`
}

type tool struct {
	Type     string `json:"type"`
	Function struct {
		Name        string          `json:"name"`
		Description string          `json:"description"`
		Parameters  json.RawMessage `json:"parameters"`
	} `json:"function"`
}

func main() {
	var input struct {
		Template string    `json:"template"`
		Messages []message `json:"messages"`
		Tools    []tool    `json:"tools"`
	}
	if err := json.NewDecoder(os.Stdin).Decode(&input); err != nil {
		panic(err)
	}
	functions := template.FuncMap{"json": func(value interface{}) string {
		text, _ := json.Marshal(value)
		return string(text)
	}}
	var system []string
	for _, one := range input.Messages {
		if one.Role == "system" {
			system = append(system, one.Content)
		}
	}
	parsed := template.Must(template.New("").Funcs(functions).Option("missingkey=zero").Parse(input.Template))
	err := parsed.Execute(os.Stdout, map[string]interface{}{
		"System": strings.Join(system, "\n\n"), "Messages": input.Messages, "Tools": input.Tools,
	})
	if err != nil {
		panic(err)
	}
}
