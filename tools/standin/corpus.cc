#include "tools/standin/corpus.h"

#include <fstream>
#include <iterator>

namespace paceline {
namespace {

constexpr const char* kParagraphs[] = {
    "Once upon a time there was a small town between the river and the hills. In the morning the "
    "baker opened his shop, and the smell of bread went down the street and into every house. The "
    "children ran to the school by the bridge, and the old men sat in the sun and talked about the "
    "weather.",
    "It was a dark and stormy night. The wind came over the hills and shook the windows, and the "
    "rain ran down the street like a second river. In the last house a woman sat by the fire and "
    "read a letter for the third time. She did not know who had sent it, and she did not know what "
    "to say to her brother.",
    "\"Who is there?\" she said, and put the letter down. There was no answer. She took the lamp "
    "and went to the door, and there in the rain stood a man whom she had not seen for ten years.",
    "The man was tired and cold, and he did not speak until he had sat by the fire for a long "
    "while. Then he told her a story about a ship, and a storm, and an island where nobody lived. "
    "He had been there for two winters, and he had counted every day on the wall of a cave.",
    "In the summer the river was slow and green. The children built a raft of old boards and went "
    "down as far as the mill, where the miller shouted at them and then gave them apples. They ate "
    "the apples on the bank and looked at the clouds, and one of them said that she would go to "
    "sea when she was grown.",
    "There was a dog in the town who belonged to nobody. He slept in front of the church, and he "
    "ate what the butcher gave him, and every evening he walked to the bridge and looked at the "
    "water. When the snow came, the baker opened the door and let him in, and from that night the "
    "dog belonged to the baker.",
    "The teacher had a box full of stones. Each of them had a name and a place, and she could tell "
    "where she had found it. This one is from the top of the mountain, she said, and this one is "
    "from the bottom of the sea, and they are made of the same thing.",
    "A machine that writes one word after another does not know what it will say. It looks at the "
    "words that are there, and it asks which word is likely to come next. Then it takes one of "
    "them, and looks again. A small machine can guess what a large machine will say, and the large "
    "machine can check many guesses at once.",
    "When the guess is right, the words come faster. When the guess is wrong, the large machine "
    "says its own word, and nothing is lost but a little time. So the text is always the text of "
    "the large machine, and the small one only makes it quick.",
    "Riders in a long line take turns at the front, where the wind is hard. The others stay behind "
    "and save their strength. A good line is quiet and even: each rider watches the wheel in front "
    "and holds the same speed, and when the first one is tired he moves to the side and lets the "
    "line go past.",
    "The clerk wrote the names in the book, one under the other, and beside each name the hour and "
    "the price. At the end of the day he added the numbers, and when they did not agree he began "
    "again from the top of the page. He had never gone home before the numbers agreed.",
    "In the garden behind the house there were roses, and beans, and a pear tree that was older "
    "than the house. The grandmother knew what to do in each month of the year. In March she cut "
    "the roses; in May she set the beans; in September she sent the children up the tree.",
    "The train was late, and the station was full of people who looked at the clock. A boy with a "
    "violin began to play, at first for himself and then for the others. When the train came at "
    "last, some of them stayed where they were until the song was over.",
    "He opened the window and listened. Far away a bell rang, and another one answered it, and "
    "then the whole valley was full of bells. \"What is it?\" he asked. \"It is the new year,\" "
    "she said. \"Come in and shut the window, it is cold.\"",
    "The captain looked at the map for a long time. There was nothing on it but water and a small "
    "cross that somebody had made with a pencil. \"If we go to the north,\" he said, \"we will be "
    "home before the winter. If we go to the south, we will be rich or we will be dead.\"",
    "They went to the south. For nine days the wind was with them, and on the tenth day there was "
    "no wind at all. The sea was like glass, and the men sat on the deck and mended what could be "
    "mended. On the twelfth day they saw a bird.",
    "To make soup, take two onions, a piece of butter and as much water as you need. Cut the "
    "onions and let them turn brown in the butter; this takes a long time, and it cannot be done "
    "faster. Then add the water and the salt, and let it stand on the fire until it is good.",
    "The king had three daughters, and each of them wanted the same horse. \"I will give it to the "
    "one who can tell me what the horse is thinking,\" said the king. The first one said that it "
    "was thinking of the grass, and the second one said that it was thinking of the sea. The third "
    "one went to the horse and asked.",
    "One, two, three, four, five, six, seven, eight, nine, ten. There are seven days in a week and "
    "twelve months in a year. On Monday we work, and on Tuesday, and on Wednesday, and on "
    "Thursday, "
    "and on Friday; on Saturday we work in the garden, and on Sunday we do nothing at all.",
    "What is the time? It is half past three. Where are you going? I am going to the market. Will "
    "you be back before dark? I will be back before you know it. Do not forget the bread. I have "
    "never forgotten the bread.",
    "At the end of the street there was a shop where nothing was sold. The door was open, and the "
    "lamps were lit, and behind the table sat a man who wrote in a book. If you asked him what he "
    "had, he said: \"Tell me what you need.\" And if you told him, he wrote it down and thanked "
    "you, and you went away and did not need it any more.",
    "The old woman laughed. \"You have come a long way,\" she said, \"and you have brought the "
    "wrong key. But sit down and eat, and in the morning we will see whether the door cannot be "
    "opened without one.\"",
};

}  // namespace

std::string BuiltInText() {
  std::string text;
  for (const char* paragraph : kParagraphs) {
    text += paragraph;
    text += "\n\n";
  }
  return text;
}

std::string ReadCorpus(const std::vector<std::string>& files) {
  std::string text = BuiltInText();
  for (const std::string& path : files) {
    std::ifstream in(path, std::ios::binary);
    if (!in) continue;
    text.append(std::istreambuf_iterator<char>(in), {});
    text += "\n\n";
  }
  return text;
}

}  // namespace paceline
